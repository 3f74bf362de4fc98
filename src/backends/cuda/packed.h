// The physical layout of matrices: 16 x 128 blocks in the order in which the lanes of a warp need them
// as the A operand of mma.m16n8k16 (and wgmma.m64nNk16), so that a warp streams a block with 16-byte loads and no shuffle.
//
// A matrix is [row tiles of 16][blocks of 128 along K][block bytes]; rows and K are padded with zeros.
// Lane = 4 g + t holds rows g and g + 8, and of step s = 0, 1 of a group of 32 along K the elements k = 16 s + 2 t,
// 2 t + 1, 8 + 2 t, 9 + 2 t (i = 0..3): the operand's own order. So tokens that are multiplied as they are lie in order of K,
// and so does K in matrices of BF16 and, of E4M3, in those for groups of rows. Tokens that act8 rounds lie, in each group of
// 128, in the order of rounded_place(), as does K in other matrices of E4M3 and in all of E2M1: lane t then has all of the
// t-th 32 elements, and of MXFP4 one scale for them.
//   BF16  [4 groups of 32][2: row g, row g + 8][32 lanes][s0, s1]               4096 bytes
//   E4M3  [4 groups of 32][32 lanes][row g: s0, s1; row g + 8: s0, s1]           2048 bytes
//         four codes of a step in one word, their bits as e4m3_to_bf16 wants them
//   E2M1  [2 groups of 64][32 lanes][group 0: row g, row g + 8; group 1: same]   1024 bytes
//         eight codes of a row in one word, s0 then s1; the bits of a pair of words as e2m1_to_bf16 wants them
// Scales: E4M3 matrices keep the published [rows/128, K/128]; those of E2M1 follow the codes in each block, [16 rows][4 lanes],
// of NVFP4 two each, so that neighbouring blocks of a tile come in one copy.
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
  const uint8_t* scales = nullptr;  // of E4M3
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
// Bytes of scales behind the codes of a block.
DSV4_HD constexpr int block_scale_bytes(WeightFormat f) {
  return f == WeightFormat::kMxfp4 ? 64 : f == WeightFormat::kNvfp4 ? 128 : 0;
}
DSV4_HD constexpr int block_bytes(WeightFormat f) { return block_code_bytes(f) + block_scale_bytes(f); }

// Codes whose bits were moved into BF16's places stand for value * 2^-n of this n.
inline constexpr int kE4m3InPlace = 120, kE2m1InPlace = 126;
// So the largest UE8M0 scale (value times 2^(scale - 127)) that one BF16 factor can bring back; no checkpoint is known
// to come near it.
DSV4_HD constexpr int largest_scale(WeightFormat f) { return 254 - (f == WeightFormat::kMxfp4 ? kE2m1InPlace : kE4m3InPlace); }

// Where element (row r of 16, k of 128) of a block lies.
struct Place {
  int byte;     // of E4M3: of the word of four codes; of E2M1: of the pair of words of rows g and g + 8
  int element;  // in the word; in the pair, s0 of row g first
};

// Where element k of a row is: group of 32, step, lane t, i.
struct Position {
  int group, step, t, i;
};
DSV4_HD constexpr Position position_of(int k) { return {k / 32, k % 32 / 16, k % 8 / 2, k % 16 / 8 * 2 + k % 2}; }

DSV4_HD constexpr Place place_bf16(int r, int k) {
  const Position p = position_of(k);
  return {(((p.group * 2 + r / 8) * 32 + r % 8 * 4 + p.t) * 8 + p.step * 4 + p.i) * 2, 0};
}
DSV4_HD constexpr Place place_e4m3(int r, int k) {
  const Position p = position_of(k);
  return {(p.group * 32 + r % 8 * 4 + p.t) * 16 + r / 8 * 8 + p.step * 4, p.i};
}
DSV4_HD constexpr Place place_e2m1(int r, int k) {
  const Position p = position_of(k);
  return {(p.group / 2 * 32 + r % 8 * 4 + p.t) * 16 + p.group % 2 * 8, r / 8 * 8 + p.step * 4 + p.i};
}

// Where element k of a group of 128 lies among rounded tokens: pairs of neighbours, the first of all four lanes, ...
DSV4_HD constexpr int rounded_place(int k) { return (k % 32 / 2 * 4 + k / 32) * 2 + k % 2; }

DSV4_HD constexpr uint32_t turn(uint32_t w, int right) { return w >> right | w << (32 - right); }

// a where the mask is set, b elsewhere.
DSV4_HD constexpr uint32_t choose(uint32_t a, uint32_t b, uint32_t mask) {
#ifdef __CUDA_ARCH__
  uint32_t d;  // one instruction, where the compiler takes two
  asm("lop3.b32 %0, %1, %2, %3, 0xe4;" : "=r"(d) : "r"(a), "r"(b), "r"(mask));
  return d;
#else
  return (a & mask) | (b & ~mask);
#endif
}

// E4M3 in its places. An operand is a pair of BF16 with sign and magnitude of a code at bits 15 and 10..4 of each half:
// value * 2^-120, subnormals included, since exponent and mantissa are where they belong. The first operand of a word is
// a mask away. The other half of the bits has the second one in two pieces, sign and exponent four bits too high, the
// mantissa four too low: 5 operations for 4 codes.
inline constexpr uint32_t kE4m3Mask = 0x87f087f0u, kE4m3High = 0x87808780u, kE4m3Low = 0x00700070u;
DSV4_HD constexpr void e4m3_to_bf16(uint32_t word, uint32_t (&pairs)[2]) {
  pairs[0] = word & kE4m3Mask;
  pairs[1] = (turn(word, 4) & kE4m3High) | (word << 4 & kE4m3Low);
}
// Where bit b of element e of a word is. Sign: b = 7.
DSV4_HD constexpr int e4m3_bit(int e, int b) {
  const int in_operand = (b == 7 ? 15 : 4 + b) + e % 2 * 16;
  return e < 2 ? in_operand : kE4m3Low >> in_operand & 1u ? in_operand - 4 : (in_operand + 4) % 32;
}

// E2M1 in its places. An operand is a pair of BF16 with sign and magnitude of a code at bits 15 and 8..6 of each half:
// value * 2^-126, subnormals included, since exponent and mantissa are where they belong. A mask takes them out of a
// word: of three rotations of it whose masks do not meet. The fourth operand of two words has no place of its own left
// in either, but what is left of both, one moved by two bits, has room for two operands more: 16 operations for 16 codes.
inline constexpr uint32_t kE2m1Mask = 0x81c081c0u, kE2m1Left = 0x06030603u;  // left: bits 0, 1, 9, 10 of a half
// To the right, of operand 0..2 in its word, and of the last ones of both words in what is left.
DSV4_HD constexpr int e2m1_turn(int operand) { return operand == 0 ? 0 : operand == 1 ? 6 : 28; }
DSV4_HD constexpr int e2m1_turn_of_rest(int h) { return h == 0 ? 4 : 26; }

// words[h]: of row g + 8 h; pairs[h][p]: its elements 2 p and 2 p + 1.
DSV4_HD constexpr void e2m1_to_bf16(const uint32_t (&words)[2], uint32_t (&pairs)[2][4]) {
  const uint32_t rest = choose(words[0], words[1] << 2, kE2m1Left);
  for (int h = 0; h < 2; ++h) {
    pairs[h][0] = words[h] & kE2m1Mask;
    pairs[h][1] = turn(words[h], e2m1_turn(1)) & kE2m1Mask;
    pairs[h][2] = words[h] << 4 & kE2m1Mask;  // nothing crosses the end: as a turn by 28
  }
  pairs[0][3] = turn(rest, e2m1_turn_of_rest(0)) & kE2m1Mask;
  pairs[1][3] = rest << 6 & kE2m1Mask;  // as a turn by 26
}

// Where bit b of element e of a pair of words is: 32 h + bit of word h. Sign: b = 3.
DSV4_HD constexpr int e2m1_bit(int e, int b) {
  const int h = e / 8, pair = e % 8 / 2, in_operand = (b == 3 ? 15 : 6 + b) + e % 2 * 16;
  if (pair < 3) return 32 * h + (in_operand + e2m1_turn(pair)) % 32;
  const int in_rest = (in_operand + e2m1_turn_of_rest(h)) % 32;
  return kE2m1Left >> in_rest & 1u ? in_rest : 32 + (in_rest + 30) % 32;
}

// A published code in the bits of its word or pair of words (that of row g low), and back.
template <int kBits>
DSV4_HD constexpr uint64_t place_code(uint32_t code, int e) {
  uint64_t words = 0;
  for (int b = 0; b < kBits; ++b) words |= static_cast<uint64_t>(code >> b & 1u) << (kBits == 4 ? e2m1_bit(e, b) : e4m3_bit(e, b));
  return words;
}
template <int kBits>
DSV4_HD constexpr uint32_t code_at(uint64_t words, int e) {
  uint32_t code = 0;
  for (int b = 0; b < kBits; ++b) code |= static_cast<uint32_t>(words >> (kBits == 4 ? e2m1_bit(e, b) : e4m3_bit(e, b)) & 1u) << b;
  return code;
}

// Tokens as the B operand of wgmma lie as rows of 128 bytes, half a block of K, in tiles of 8 rows (1024 bytes, aligned
// to that); 16-byte piece c of row n at c ^ n % 8: what the hardware calls a swizzle of 128 bytes.
inline constexpr int kTokenRowBytes = 128, kTokenTileBytes = 8 * kTokenRowBytes;
DSV4_HD constexpr int token_piece(int n, int c) { return n * kTokenRowBytes + (c ^ n % 8) * 16; }

}  // namespace dsv4::cuda
