// The one matrix product of this backend: weights are the M operand (16 rows of a tile per warp),
// tokens the N operand (8 per MMA). Whatever the number of tokens, each output is the same sum in the
// same order: MMAs along K within a block of 128 (FP8, BF16) or a group of one scale (FP4), blocks in turn, and
// the shares of the warps that split K last. The split is a function of the weight's shape alone.
#pragma once

#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/packed.h"
#include "formats/e4m3.h"
#include "formats/ue8m0.h"

namespace dsv4::cuda {

// How a format's weights meet their input.
enum class Product : uint8_t {
  kBf16,         // BF16 weights, BF16 input
  kFp8,          // E4M3 weights, act8 input
  kFp8Bf16,      // E4M3 weights, BF16 input (wo_a)
  kMxfp4,        // act8 input
  kNvfp4,
};

constexpr bool is_fp4(Product p) { return p == Product::kMxfp4 || p == Product::kNvfp4; }
constexpr bool takes_act8(Product p) { return p == Product::kFp8 || is_fp4(p); }
constexpr int code_vectors(Product p) {  // 16-byte loads per lane and block
  return p == Product::kBf16 ? 8 : is_fp4(p) ? 2 : 4;
}

// The input of NT * 8 tokens: BF16 in order of K, or act8 codes as device/quantise.cuh lays them; row of token n
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
  if constexpr (P == Product::kFp8 || P == Product::kFp8Bf16) t.scales += tile * kTileRows / 128 * blocks;
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
  if constexpr (P == Product::kFp8 || P == Product::kFp8Bf16) b.scales[0] = tile.scales[block];
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

// The A operand of step `s` (0, 1) of group `j` (0..3) of a block that meets BF16.
template <Product P>
__device__ inline void operand(const Block<P>& b, int j, int s, uint32_t (&a)[4]) {
  if constexpr (P == Product::kBf16) {
    const uint4 &low = b.codes[2 * j], &high = b.codes[2 * j + 1];
    a[0] = s ? low.z : low.x;
    a[2] = s ? low.w : low.y;
    a[1] = s ? high.z : high.x;
    a[3] = s ? high.w : high.y;
  } else {
    e4m3_to_bf16(s ? b.codes[j].y : b.codes[j].x, a[0], a[2]);
    e4m3_to_bf16(s ? b.codes[j].w : b.codes[j].z, a[1], a[3]);
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
    if constexpr (P == Product::kFp8 || P == Product::kFp8Bf16) of_weight = ue8m0_to_float(static_cast<uint8_t>(b[m].scales[0]));
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

// Blocks in flight per warp: as many as registers allow; the fewer tokens, the more.
template <Product P, int MA, int NT>
constexpr int depth() {
  if (NT > 2 || P == Product::kBf16) return 1;
  if (P == Product::kMxfp4) return NT == 1 && MA == 1 ? 4 : MA == 1 ? 3 : 2;
  if (P == Product::kNvfp4) return MA == 1 ? 2 : 1;
  return MA == 1 && NT == 1 ? 3 : 1;
}

// total[m][n] += the product of blocks first, first + step, ... of MA tiles with the input.
template <Product P, int MA, int NT>
__device__ inline void multiply(const Tile (&tiles)[MA], int blocks, int first, int step, const Input<NT>& in,
                                float (&total)[MA][NT][4]) {
  const int t = threadIdx.x % 4;
  constexpr int kDepth = depth<P, MA, NT>();
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
      if constexpr (takes_act8(P)) {
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
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          uint32_t a[2][MA][4];
#pragma unroll
          for (int m = 0; m < MA; ++m) {
            operand<P>(b[m], j, 0, a[0][m]);
            operand<P>(b[m], j, 1, a[1][m]);
          }
#pragma unroll
          for (int n = 0; n < NT; ++n) {
            uint4 x = {0, 0, 0, 0};
            if (in.row[n] != kAbsent) {
              const char* at = in.x + in.row[n] + block * (kBlockK * 2) + j * 64;
              if constexpr (P == Product::kFp8Bf16) {
                // Input in its own order for weights in the order of quantised ones.
                const uint2 low = *reinterpret_cast<const uint2*>(at + t * 8);
                const uint2 high = *reinterpret_cast<const uint2*>(at + 32 + t * 8);
                x = {low.x, low.y, high.x, high.y};
              } else {
                x = *reinterpret_cast<const uint4*>(at + t * 16);
              }
            }
            const uint32_t x0[2] = {x.x, x.y}, x1[2] = {x.z, x.w};
#pragma unroll
            for (int m = 0; m < MA; ++m) {
              mma_bf16(part[m][n], a[0][m], x0);
              mma_bf16(part[m][n], a[1][m], x1);
            }
          }
        }
#pragma unroll
        for (int n = 0; n < NT; ++n) scale[n][0] = scale[n][1] = 1.0f;
      }
      add_block<P>(b, scale, part, total);
    }
  }
}

}  // namespace dsv4::cuda
