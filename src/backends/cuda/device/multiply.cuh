// The one matrix product of this backend: weights are the M operand (16 rows of a tile per warp), tokens the N operand
// (8 or more), both as BF16 with their scales in them. That is exact: codes have four bits at most, scales are powers
// of two or have four bits too. Whatever the number of tokens, each output is the same sum in the same order: one chain of MMAs
// over a share of K, the shares added last; they are a function of the weight's shape alone.
#pragma once

#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/packed.h"
#include "formats/e4m3.h"
#include "formats/ue8m0.h"

namespace dsv4::cuda {

// A weight's format.
enum class Product : uint8_t { kBf16, kFp8, kMxfp4, kNvfp4 };
constexpr Product product_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kFp8Tile128: return Product::kFp8;
    case WeightFormat::kMxfp4: return Product::kMxfp4;
    case WeightFormat::kNvfp4: return Product::kNvfp4;
    default: return Product::kBf16;
  }
}

constexpr bool is_fp4(Product p) { return p == Product::kMxfp4 || p == Product::kNvfp4; }
constexpr WeightFormat format_of(Product p) {
  switch (p) {
    case Product::kFp8: return WeightFormat::kFp8Tile128;
    case Product::kMxfp4: return WeightFormat::kMxfp4;
    case Product::kNvfp4: return WeightFormat::kNvfp4;
    default: return WeightFormat::kBf16;
  }
}
constexpr int code_vectors(Product p) { return block_code_bytes(format_of(p)) / 512; }  // 16-byte loads per lane and block
template <Product P>
inline constexpr int kCodeBytes = block_code_bytes(format_of(P));  // of a block
template <Product P>
inline constexpr int kBlockBytes = block_bytes(format_of(P));

// One tile's blocks, and in E4M3 its scales, one per block.
struct Tile {
  const uint8_t* codes;
  const uint8_t* scales;
};

template <Product P>
__device__ inline Tile tile_of(const Matrix& m, int tile) {
  const int64_t blocks = m.blocks();
  Tile t{m.codes + tile * blocks * kBlockBytes<P>, m.scales};
  if constexpr (P == Product::kFp8) t.scales += tile * kTileRows / 128 * blocks;
  return t;
}

// What a lane holds of one block.
template <Product P>
struct Block {
  uint4 codes[code_vectors(P)];
  uint32_t scales[is_fp4(P) ? 2 : 1];  // of E2M1: for row g and row g + 8
};

// The scales of this lane's codes of a block of E2M1, at `scales`: of each row one byte, of NVFP4 two.
template <Product P>
__device__ inline void load_scales(const void* scales, Block<P>& b) {
  const int lane = threadIdx.x % 32;
  if constexpr (P == Product::kMxfp4) {
    const uint8_t* s = static_cast<const uint8_t*>(scales) + lane;
    b.scales[0] = s[0];
    b.scales[1] = s[32];
  }
  if constexpr (P == Product::kNvfp4) {
    const uint16_t* s = static_cast<const uint16_t*>(scales) + lane;
    b.scales[0] = s[0];
    b.scales[1] = s[32];
  }
}

template <Product P>
__device__ inline void load_block(const Tile& tile, int block, Block<P>& b) {
  const uint8_t* at = tile.codes + static_cast<int64_t>(block) * kBlockBytes<P>;
#pragma unroll
  for (int i = 0; i < code_vectors(P); ++i) b.codes[i] = load_stream(at + i * 512 + threadIdx.x % 32 * 16);
  if constexpr (P == Product::kFp8) b.scales[0] = tile.scales[block];
  load_scales<P>(at + kCodeBytes<P>, b);
}

// The factor that makes value * 2^(scale - 127) of a code in place, as a pair of BF16.
template <Product P>
inline constexpr uint32_t kInPlace = P == Product::kFp8 ? kE4m3InPlace : kE2m1InPlace;
template <Product P>
__device__ inline uint32_t code_factor(uint32_t scale) {
  return scale * 0x00800080u + kInPlace<P> * 0x00800080u;
}

// The A operands of both steps of group `j` of a block.
template <Product P>
__device__ inline void operands(const Block<P>& b, int j, uint32_t (&a)[2][4]) {
  if constexpr (P == Product::kBf16) {
    const uint4 &low = b.codes[2 * j], &high = b.codes[2 * j + 1];
    a[0][0] = low.x;
    a[0][2] = low.y;
    a[1][0] = low.z;
    a[1][2] = low.w;
    a[0][1] = high.x;
    a[0][3] = high.y;
    a[1][1] = high.z;
    a[1][3] = high.w;
  } else if constexpr (P == Product::kFp8) {
    const uint4& v = b.codes[j];
    const uint32_t factor = code_factor<P>(b.scales[0]);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // row g: both steps, row g + 8: both
      uint32_t pairs[2];
      e4m3_to_bf16(words[i], pairs);
      a[i % 2][i / 2] = mul_bf16x2(pairs[0], factor);
      a[i % 2][i / 2 + 2] = mul_bf16x2(pairs[1], factor);
    }
  } else {
    const uint4& v = b.codes[j / 2];
    const uint32_t words[2] = {j % 2 ? v.z : v.x, j % 2 ? v.w : v.y};
    uint32_t pairs[2][4];
    e2m1_to_bf16(words, pairs);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t factor = code_factor<P>(P == Product::kMxfp4 ? b.scales[r] : 127u);
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i / 2][r + i % 2 * 2] = mul_bf16x2(pairs[r][i], factor);
    }
    if constexpr (P == Product::kNvfp4) {
      // A scale for each two groups, in E4M3.
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float scale = e4m3_to_float(static_cast<uint8_t>(b.scales[i % 2] >> 8 * (j / 2)));
        a[i / 4][i % 4] = mul_bf16x2(a[i / 4][i % 4], (float_to_bits(scale) >> 16) * 0x10001u);
      }
    }
  }
}

// Blocks of MA tiles on their way into registers, per warp: first, first + step, ...
template <Product P>
inline constexpr int kDepth = P == Product::kBf16 ? 1 : 3;
template <Product P, int MA, int Depth = kDepth<P>>
using Ahead = Block<P>[Depth][MA];
template <Product P, int MA, int Depth>
__device__ inline void load_ahead(const Tile (&tiles)[MA], int blocks, int first, int step, Block<P> (&ahead)[Depth][MA]) {
#pragma unroll
  for (int d = 0; d < Depth; ++d) {
#pragma unroll
    for (int m = 0; m < MA; ++m) {
      if (first + d * step < blocks) load_block<P>(tiles[m], first + d * step, ahead[d][m]);
    }
  }
}

// total += the first Groups groups of 32 of K of a block of MA tiles times NT * 8 tokens, whose operands for this lane
// begin at x[NT], `at` bytes on for this K.
template <Product P, int Groups, int MA, int NT>
__device__ inline void multiply_groups(const Block<P> (&b)[MA], const char* const (&x)[NT], int at, float (&total)[MA][NT][4]) {
#pragma unroll
  for (int j = 0; j < Groups; ++j) {
    uint32_t tokens[NT][4];
#pragma unroll
    for (int n = 0; n < NT; ++n) ldmatrix(tokens[n], x[n] + at + j * 64);
#pragma unroll
    for (int m = 0; m < MA; ++m) {
      uint32_t a[2][4];
      operands<P>(b[m], j, a);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const uint32_t first[2] = {tokens[n][0], tokens[n][1]}, second[2] = {tokens[n][2], tokens[n][3]};
        mma_bf16(total[m][n], a[0], first);
        mma_bf16(total[m][n], a[1], second);
      }
    }
  }
}

// Rows of up to NT * 8 tokens in shared memory, in the order of the weights' K, `blocks` of 128: 16 bytes apart modulo 128, so that eight
// rows meet different banks. And where this lane's operands of the first block are (rows past the last: any row).
__host__ __device__ constexpr int few_stride(int blocks) { return blocks * kBlockK * 2 + 16; }
template <int NT>
__device__ inline void few_tokens(const char* rows, int stride, int tokens, const char* (&x)[NT]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < NT; ++n) x[n] = rows + min(n * 8 + lane % 8, tokens - 1) * stride + lane / 8 * 16;
}

// total += the product of blocks first, first + step, ... of MA tiles with up to NT * 8 tokens, the first of the blocks
// `ahead`; x of few_tokens(), the operands of the first block `at` bytes on, of the next one `at_step` further.
template <Product P, int MA, int NT, int Depth>
__device__ inline void multiply(const Tile (&tiles)[MA], int blocks, int first, int step, Block<P> (&ahead)[Depth][MA],
                                const char* const (&x)[NT], int at, int at_step, float (&total)[MA][NT][4]) {
  constexpr int kSteps = Depth;
  for (int base = first; base < blocks; base += kSteps * step) {
#pragma unroll
    for (int stage = 0; stage < kSteps; ++stage) {
      const int block = base + stage * step;
      if (block >= blocks) break;
      Block<P> b[MA];
#pragma unroll
      for (int m = 0; m < MA; ++m) b[m] = ahead[stage][m];
      if (block + kSteps * step < blocks) {
#pragma unroll
        for (int m = 0; m < MA; ++m) load_block<P>(tiles[m], block + kSteps * step, ahead[stage][m]);
      }
      multiply_groups<P, 4>(b, x, at, total);
      at += at_step;
    }
  }
}

}  // namespace dsv4::cuda
