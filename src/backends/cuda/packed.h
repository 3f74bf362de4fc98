// The physical layout of matrices: 16 x 128 blocks in the order in which the lanes of a warp need them
// as the A operand of mma.m16n8k16 (and wgmma.m64nNk16), so that a warp streams a block with 16-byte loads and no shuffle.
//
// A matrix is [row tiles of 16][blocks of 128 along K][block bytes]; rows and K are padded with zeros.
// Lane = 4 g + t holds rows g and g + 8, and of step s = 0, 1 of a group of 32 along K the elements k = 16 s + 2 t,
// 2 t + 1, 8 + 2 t, 9 + 2 t (i = 0..3): the operand's own order, so that tokens lie in order of K.
//   BF16  [4 groups of 32][2: row g, row g + 8][32 lanes][s0, s1]               4096 bytes
//   E4M3  [4 groups of 32][32 lanes][row g: s0, s1; row g + 8: s0, s1]           2048 bytes
//         four codes of a step as (i0, i2, i1, i3): two masks make two pairs of BF16
//   E2M1  [2 groups of 64][32 lanes][group 0: row g, row g + 8; group 1: same]   1024 bytes
//         eight codes of a row in one word, s0 then s1, as e2m1_to_bf16 wants them
// Scales: E4M3 matrices keep the published [rows/128, K/128]; E2M1 [tile][block][16 rows][4 or 8].
#pragma once

#include <cstdint>

#include "formats/host_device.h"
#include "formats/weight_format.h"

namespace dsv4::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kBlockK = 128;

// One matrix as kernels see it, by value.
struct Matrix {
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;
  float global_scale = 1.0f;
  int32_t rows = 0, cols = 0;
  WeightFormat format = WeightFormat::kBf16;

  DSV4_HD int32_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  DSV4_HD int32_t blocks() const { return (cols + kBlockK - 1) / kBlockK; }
};

// A stack of matrices of one shape and format.
struct MatrixStack {
  Matrix first;
  int64_t code_stride = 0, scale_stride = 0;  // bytes from one matrix to the next
  const float* global_scales = nullptr;       // [count], device memory; nullptr = 1
};

DSV4_HD constexpr int block_code_bytes(WeightFormat f) {
  return f == WeightFormat::kBf16 ? 4096 : f == WeightFormat::kFp8Tile128 ? 2048 : 1024;
}
// Bytes of scales per 16 x 128 block, for formats that pack them by block.
DSV4_HD constexpr int block_scale_bytes(WeightFormat f) {
  return f == WeightFormat::kMxfp4 ? 64 : f == WeightFormat::kNvfp4 ? 128 : 0;
}

// Codes whose bits were moved into BF16's places stand for value * 2^-n of this n.
inline constexpr int kE4m3InPlace = 120, kE2m1InPlace = 126;
// So the largest UE8M0 scale (value times 2^(scale - 127)) that one BF16 factor can bring back; no checkpoint is known
// to come near it.
DSV4_HD constexpr int largest_scale(WeightFormat f) { return 254 - (f == WeightFormat::kMxfp4 ? kE2m1InPlace : kE4m3InPlace); }

// Where element (row r of 16, k of 128) of a block lies.
struct Place {
  int byte;     // of E2M1: of the word
  int element;  // of E2M1: in the word, s0 first
};

// Where element k of a row is: group of 32, step, lane t, i.
struct Position {
  int group, step, t, i;
};
DSV4_HD constexpr Position position_of(int k) { return {k / 32, k % 32 / 16, k % 8 / 2, k % 16 / 8 * 2 + k % 2}; }
// Place of code i of four: (i0, i2, i1, i3).
DSV4_HD constexpr int place_of_four(int i) { return i == 1 ? 2 : i == 2 ? 1 : i; }

DSV4_HD constexpr Place place_bf16(int r, int k) {
  const Position p = position_of(k);
  return {(((p.group * 2 + r / 8) * 32 + r % 8 * 4 + p.t) * 8 + p.step * 4 + p.i) * 2, 0};
}
DSV4_HD constexpr Place place_e4m3(int r, int k) {
  const Position p = position_of(k);
  return {(p.group * 32 + r % 8 * 4 + p.t) * 16 + r / 8 * 8 + p.step * 4 + place_of_four(p.i), 0};
}
DSV4_HD constexpr Place place_e2m1(int r, int k) {
  const Position p = position_of(k);
  return {(p.group / 2 * 32 + r % 8 * 4 + p.t) * 16 + p.group % 2 * 8 + r / 8 * 4, p.step * 4 + p.i};
}

// A published E2M1 code in the bits of its word, and back. Pair p of elements (2 p, 2 p + 1) has one in each half of
// the word: sign and magnitude at bits 15 and 8..6, 12 and 5..3, 9 and 2..0, 14 and 13, 11, 10 of it.
DSV4_HD constexpr uint32_t place_code(uint32_t code, int e) {
  const uint32_t sign = code >> 3 & 1u, magnitude = code & 7u;
  const int pair = e / 2;
  const uint32_t bits = pair < 3 ? (sign << 15 | magnitude << 6) >> 3 * pair : sign << 14 | (magnitude & 4u) << 11 | (magnitude & 3u) << 10;
  return bits << (e % 2 * 16);
}
DSV4_HD constexpr uint32_t code_at(uint32_t word, int e) {
  const int pair = e / 2;
  const uint32_t half = word >> (e % 2 * 16) & 0xffffu;
  if (pair < 3) return (half << 3 * pair >> 12 & 8u) | (half << 3 * pair >> 6 & 7u);
  return (half >> 11 & 8u) | (half >> 11 & 4u) | (half >> 10 & 3u);
}

// Eight E2M1 codes of one row as four pairs of BF16: value * 2^-126, subnormals included, since the bits of exponent
// and mantissa move into place as they are.
DSV4_HD constexpr void e2m1_to_bf16(uint32_t w, uint32_t (&pairs)[4]) {
  constexpr uint32_t kCode = 0x81c081c0u;
  pairs[0] = w & kCode;
  pairs[1] = w << 3 & kCode;
  pairs[2] = w << 6 & kCode;
  pairs[3] = (w << 1 & 0x80008000u) | (w >> 5 & 0x01000100u) | (w >> 4 & 0x00c000c0u);
}

// Tokens as the B operand of wgmma lie as rows of 128 bytes, half a block of K, in tiles of 8 rows (1024 bytes, aligned
// to that); 16-byte piece c of row n at c ^ n % 8: what the hardware calls a swizzle of 128 bytes.
inline constexpr int kTokenRowBytes = 128, kTokenTileBytes = 8 * kTokenRowBytes;
DSV4_HD constexpr int token_piece(int n, int c) { return n * kTokenRowBytes + (c ^ n % 8) * 16; }

}  // namespace dsv4::cuda
