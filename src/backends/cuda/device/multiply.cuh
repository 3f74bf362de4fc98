// Weights times tokens: weights are the M operand (16 rows of a tile per warp), tokens the N operand (8 per MMA).
// Whatever the number of tokens, each output is the same sum in the same order.
//   linear maps   weights and inputs as BF16, their scales (powers of two, or few bits) in them, which is exact: one
//                 chain of MMAs over a share of K, the shares added last. The shares are a function of the weight's
//                 shape alone.
//   NVFP4 experts  act8 codes: MMAs along K within a block of 128 (FP8) or a group of one scale (FP4), blocks in
//                 turn, shares last
#pragma once

#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/packed.h"
#include "formats/e4m3.h"
#include "formats/ue8m0.h"

namespace dsv4::cuda {

// A weight's format.
enum class Product : uint8_t { kBf16, kFp8, kMxfp4, kNvfp4 };

constexpr bool is_fp4(Product p) { return p == Product::kMxfp4 || p == Product::kNvfp4; }
constexpr int code_vectors(Product p) {  // 16-byte loads per lane and block
  return p == Product::kBf16 ? 8 : is_fp4(p) ? 2 : 4;
}

// One tile's codes and scales, by block.
struct Tile {
  const uint8_t* codes;
  const uint8_t* scales;
};

template <Product P>
__device__ inline Tile tile_of(const Matrix& m, int tile) {
  const int64_t blocks = m.blocks();
  Tile t{m.codes + tile * blocks * block_code_bytes(P == Product::kBf16 ? WeightFormat::kBf16
                                                    : is_fp4(P)        ? WeightFormat::kMxfp4
                                                                       : WeightFormat::kFp8Tile128),
         m.scales};
  if constexpr (P == Product::kFp8) t.scales += tile * kTileRows / 128 * blocks;
  if constexpr (P == Product::kMxfp4) t.scales += tile * blocks * 64;
  if constexpr (P == Product::kNvfp4) t.scales += tile * blocks * 128;
  return t;
}

// What a lane holds of one block.
template <Product P>
struct Block {
  uint4 codes[code_vectors(P)];
  uint32_t scales[P == Product::kNvfp4 ? 4 : P == Product::kMxfp4 ? 2 : 1];
};

template <Product P>
__device__ inline void load_block(const Tile& tile, int block, Block<P>& b) {
  const int lane = threadIdx.x % 32, g = lane / 4;
  constexpr int kVectors = code_vectors(P);
  const uint8_t* at = tile.codes + static_cast<int64_t>(block) * (kVectors * 512) + lane * 16;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) b.codes[i] = load_stream(at + i * 512);
  if constexpr (P == Product::kFp8) b.scales[0] = tile.scales[block];
  if constexpr (P == Product::kMxfp4) {
    const uint32_t* s = reinterpret_cast<const uint32_t*>(tile.scales + static_cast<int64_t>(block) * 64);
    b.scales[0] = s[g];
    b.scales[1] = s[g + 8];
  }
  if constexpr (P == Product::kNvfp4) {
    const uint2* s = reinterpret_cast<const uint2*>(tile.scales + static_cast<int64_t>(block) * 128);
    const uint2 low = s[g], high = s[g + 8];
    b.scales[0] = low.x;
    b.scales[1] = low.y;
    b.scales[2] = high.x;
    b.scales[3] = high.y;
  }
}

// The A operand of group `j` of a block that meets act8.
template <Product P>
__device__ inline void operand(const Block<P>& b, int j, uint32_t (&a)[4]) {
  if constexpr (P == Product::kFp8) {
    const uint4& v = b.codes[j];
    a[0] = v.x;
    a[1] = v.z;
    a[2] = v.y;
    a[3] = v.w;
  } else {
    const uint4& v = b.codes[j / 2];
    e2m1_to_e4m3(j % 2 ? v.z : v.x, a[0], a[2]);
    e2m1_to_e4m3(j % 2 ? v.w : v.y, a[1], a[3]);
  }
}

// Scale of step s of group j of an FP4 block for row g (high = 0) or g + 8.
template <Product P>
__device__ inline float step_scale(const Block<P>& b, int j, int s, int high) {
  if constexpr (P == Product::kMxfp4) {
    // 2^(b - 127); b = 0 counts as zero. NaN scales are refused when a checkpoint is read.
    const uint32_t w = b.scales[high];
    return bits_to_float((j == 3 ? w >> 1 : w << (23 - 8 * j)) & 0x7f800000u);
  }
  const int i = 2 * j + s;
  return e4m3_to_float(static_cast<uint8_t>(b.scales[(P == Product::kNvfp4 ? 2 * high : 0) + i / 4] >> (8 * (i % 4))));
}

// E4M3 codes in place of BF16 are value * 2^-120; what they are multiplied by for value * 2^(scale - 127). Scales of
// 2^8 and more, which no checkpoint is known to have, need a second factor.
inline constexpr uint32_t kOneFactor = 134;
__device__ inline uint32_t code_factor(uint32_t scale) { return (min(scale, kOneFactor) + 120u << 7) * 0x10001u; }
__device__ inline uint32_t second_factor(uint32_t scale) { return (scale - kOneFactor + 127u << 7) * 0x10001u; }

// The A operand of step `q` (0..7) of a block as BF16, scales included: rows g and g + 8 at four k each.
template <Product P>
__device__ inline void bf16_operand(const Block<P>& b, int q, uint32_t (&a)[4]) {
  const int j = q / 2, s = q % 2;
  if constexpr (P == Product::kBf16) {
    const uint4 &low = b.codes[2 * j], &high = b.codes[2 * j + 1];
    a[0] = s ? low.z : low.x;
    a[2] = s ? low.w : low.y;
    a[1] = s ? high.z : high.x;
    a[3] = s ? high.w : high.y;
  } else if constexpr (P == Product::kFp8) {
    const uint32_t factor = code_factor(b.scales[0]);
    e4m3_to_bf16(s ? b.codes[j].y : b.codes[j].x, factor, a[0], a[2]);
    e4m3_to_bf16(s ? b.codes[j].w : b.codes[j].z, factor, a[1], a[3]);
    if (b.scales[0] > kOneFactor) {
      const uint32_t second = second_factor(b.scales[0]);
      for (uint32_t& pair : a) pair = mul_bf16x2(pair, second);
    }
  } else {
    const uint4& v = b.codes[j / 2];
    uint32_t codes[2][2];  // [row][step], values times 2^-6
    e2m1_to_e4m3(j % 2 ? v.z : v.x, codes[0][0], codes[0][1]);
    e2m1_to_e4m3(j % 2 ? v.w : v.y, codes[1][0], codes[1][1]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      e4m3_to_bf16(codes[r][s], code_factor(127), a[r], a[r + 2]);
      const uint32_t scale = (float_to_bits(step_scale<P>(b, j, s, r) * 64.0f) >> 16) * 0x10001u;
      a[r] = mul_bf16x2(a[r], scale);
      a[r + 2] = mul_bf16x2(a[r + 2], scale);
    }
  }
}

// Blocks in flight per warp: as many as registers allow.
template <Product P>
constexpr int depth() {
  return P == Product::kFp8 ? 3 : is_fp4(P) ? 2 : 1;
}

// total += the product of blocks first, first + step, ... of a tile with 8 tokens: BF16 in order of K, `row` that of
// token g, or nullptr.
template <Product P>
__device__ inline void multiply(const Tile& tile, int blocks, int first, int step, const char* row, float (&total)[4]) {
  const int t = threadIdx.x % 4;
  constexpr int kDepth = depth<P>();
  Block<P> ahead[kDepth];
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    if (first + d * step < blocks) load_block<P>(tile, first + d * step, ahead[d]);
  }
  for (int base = first; base < blocks; base += kDepth * step) {
#pragma unroll
    for (int stage = 0; stage < kDepth; ++stage) {
      const int block = base + stage * step;
      if (block >= blocks) break;
      const Block<P> b = ahead[stage];
      if (block + kDepth * step < blocks) load_block<P>(tile, block + kDepth * step, ahead[stage]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint4 x = {0, 0, 0, 0};
        if (row) {
          const char* at = row + block * (kBlockK * 2) + j * 64;
          if constexpr (P == Product::kBf16) {
            x = *reinterpret_cast<const uint4*>(at + t * 16);
          } else {
            const uint2 low = *reinterpret_cast<const uint2*>(at + t * 8);
            const uint2 high = *reinterpret_cast<const uint2*>(at + 32 + t * 8);
            x = {low.x, low.y, high.x, high.y};
          }
        }
        const uint32_t pairs[2][2] = {{x.x, x.y}, {x.z, x.w}};
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          uint32_t a[4];
          bf16_operand<P>(b, 2 * j + s, a);
          mma_bf16(total, a, pairs[s]);
        }
      }
    }
  }
}

// The input of NT * 8 tokens: act8 codes as device/quantise.cuh lays them; row of token n
// at x + row[n / 8] for the lane with g = n % 8, in bytes, or kAbsent. Scales of act8 at scales +
// scale_row[n / 8][c] for columns 2 t + c.
inline constexpr uint32_t kAbsent = 0xffffffffu;
template <int NT>
struct Input {
  const char* x;
  const float* scales;     // [token][block]
  uint32_t row[NT];        // bytes
  uint32_t scale_row[NT][2];  // elements
};

// part[m][n] += group `j` of a block of MA tiles times act8 codes x[n] of that group.
template <Product P, int MA, int NT>
__device__ inline void multiply_group(const Block<P> (&b)[MA], int j, const uint32_t (&x)[NT][2], float (&part)[MA][NT][4]) {
#pragma unroll
  for (int m = 0; m < MA; ++m) {
    uint32_t a[4];
    operand<P>(b[m], j, a);
    if constexpr (P == Product::kFp8) {
#pragma unroll
      for (int n = 0; n < NT; ++n) mma_e4m3(part[m][n], a, x[n]);
    } else if constexpr (P == Product::kMxfp4) {
      const float scale[2] = {step_scale<P>(b[m], j, 0, 0), step_scale<P>(b[m], j, 0, 1)};
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        float c[4];
        mma_e4m3_first(c, a, x[n]);
#pragma unroll
        for (int i = 0; i < 4; ++i) part[m][n][i] = __fmaf_rn(c[i], scale[i / 2], part[m][n][i]);
      }
    } else {
      // Groups of 16 have a scale each: the other half of K is zero.
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const uint32_t half[4] = {s ? 0 : a[0], s ? 0 : a[1], s ? a[2] : 0, s ? a[3] : 0};
        const float scale[2] = {step_scale<P>(b[m], j, s, 0), step_scale<P>(b[m], j, s, 1)};
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          float c[4];
          mma_e4m3_first(c, half, x[n]);
#pragma unroll
          for (int i = 0; i < 4; ++i) part[m][n][i] = __fmaf_rn(c[i], scale[i / 2], part[m][n][i]);
        }
      }
    }
  }
}

// total[m][n] += part[m][n] of block `block`, times the scales of weight and input.
template <Product P, int MA, int NT>
__device__ inline void add_block(const Block<P> (&b)[MA], const float (&scale)[NT][2], const float (&part)[MA][NT][4],
                                 float (&total)[MA][NT][4]) {
#pragma unroll
  for (int m = 0; m < MA; ++m) {
    float of_weight = 1.0f;
    if constexpr (P == Product::kFp8) of_weight = ue8m0_to_float(static_cast<uint8_t>(b[m].scales[0]));
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) total[m][n][i] = __fmaf_rn(part[m][n][i], scale[n][i % 2] * of_weight, total[m][n][i]);
    }
  }
}

// Codes of E2M1 stand for value * 2^-6.
template <Product P>
inline constexpr float kCodeUnit = is_fp4(P) ? 0x1p6f : 1.0f;

// total[m][n] += the product of blocks first, first + step, ... of MA tiles with act8 codes.
template <Product P, int MA, int NT>
__device__ inline void multiply_act8(const Tile (&tiles)[MA], int blocks, int first, int step, const Input<NT>& in,
                                     float (&total)[MA][NT][4]) {
  static_assert(P != Product::kBf16);
  const int t = threadIdx.x % 4;
  // Blocks in flight per warp, as registers allow.
  constexpr int kDepth = MA == 1 && NT <= 2 ? 2 : 1;
  Block<P> ahead[kDepth][MA];
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
#pragma unroll
    for (int m = 0; m < MA; ++m) {
      if (first + d * step < blocks) load_block<P>(tiles[m], first + d * step, ahead[d][m]);
    }
  }
  for (int base = first; base < blocks; base += kDepth * step) {
#pragma unroll
    for (int stage = 0; stage < kDepth; ++stage) {
      const int block = base + stage * step;
      if (block >= blocks) break;
      Block<P> b[MA];
#pragma unroll
      for (int m = 0; m < MA; ++m) b[m] = ahead[stage][m];
      if (block + kDepth * step < blocks) {
#pragma unroll
        for (int m = 0; m < MA; ++m) load_block<P>(tiles[m], block + kDepth * step, ahead[stage][m]);
      }
      float part[MA][NT][4] = {}, scale[NT][2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t x[2][NT][2];
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          uint4 v = {0, 0, 0, 0};
          if (in.row[n] != kAbsent) v = *reinterpret_cast<const uint4*>(in.x + in.row[n] + block * kBlockK + half * 64 + t * 16);
          x[0][n][0] = v.x;
          x[0][n][1] = v.y;
          x[1][n][0] = v.z;
          x[1][n][1] = v.w;
        }
        multiply_group<P>(b, 2 * half, x[0], part);
        multiply_group<P>(b, 2 * half + 1, x[1], part);
      }
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        scale[n][0] = in.scales[in.scale_row[n][0] + block] * kCodeUnit<P>;
        scale[n][1] = in.scales[in.scale_row[n][1] + block] * kCodeUnit<P>;
      }
      add_block<P>(b, scale, part, total);
    }
  }
}

}  // namespace dsv4::cuda
