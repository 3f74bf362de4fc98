// The product of multiply.cuh for many tokens, bit for bit: a warp holds 2 tiles x 64 tokens, so that an operand
// from shared memory meets two tiles and one from a weight eight groups of tokens. Blocks of the input come
// through a ring of stages in shared memory; weights go from L2 to registers as ever.
#pragma once

#include "backends/cuda/device/multiply.cuh"

namespace dsv4::cuda {

inline constexpr int kManyTokens = 64, kManyGroups = kManyTokens / 8;
inline constexpr int kManyTiles = 2;     // of a warp
inline constexpr int kManyWarps = 8, kManyThreads = kManyWarps * 32;
inline constexpr int kManySums = kManyTiles * kManyGroups * 4;  // of a lane

// Bytes of one token's share of a block, and of a stage of one block: rows, then scales.
template <Product P>
inline constexpr int kStageRow = takes_act8(P) ? kBlockK : kBlockK * 2;
template <Product P>
inline constexpr int kStageBytes = kManyTokens * (kStageRow<P> + (takes_act8(P) ? 4 : 0));

// Place of 16-byte piece `i` of a row: rows whose loads coincide meet different banks.
template <Product P>
__device__ constexpr int piece_at(int row, int i) {
  return P == Product::kFp8Bf16 ? i ^ (row & 3) << 1 : i ^ (row & 1) << 2;
}

// What one thread copies of every block: pieces of a few tokens, and the scale of one.
template <Product P>
struct Pieces {
  static constexpr int kPerRow = kStageRow<P> / 16;
  static constexpr int kCount = kManyTokens * kPerRow / kManyThreads;
  const char* from[kCount];  // nullptr: absent
  const float* scale;

  // row_of(n): the input row of token n, or -1; rows `stride` bytes apart, `blocks` scales each.
  template <class RowOf>
  __device__ Pieces(const void* x, int64_t stride, const float* scales, int blocks, const RowOf& row_of) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t row = row_of((threadIdx.x + i * kManyThreads) / kPerRow);
      from[i] = row < 0 ? nullptr : static_cast<const char*>(x) + row * stride + threadIdx.x % kPerRow * 16;
    }
    scale = nullptr;
    if (takes_act8(P) && threadIdx.x < kManyTokens) {
      const int64_t row = row_of(threadIdx.x);
      if (row >= 0) scale = scales + row * blocks;
    }
  }

  // Block `block` into a stage; another block than the input has: zeros.
  __device__ void copy(char* stage, int block, bool inside) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int at = threadIdx.x + i * kManyThreads, row = at / kPerRow;
      copy_async_16_or_zero(stage + row * kStageRow<P> + piece_at<P>(row, at % kPerRow) * 16,
                            from[i] + block * kStageRow<P>, from[i] && inside);
    }
    if (takes_act8(P) && threadIdx.x < kManyTokens) {
      copy_async_4_or_zero(stage + kManyTokens * kStageRow<P> + threadIdx.x * 4, scale + block, scale && inside);
    }
  }
};

using ManySums = float[kManyTiles][kManyGroups][4];

// total += one block of two tiles times the 64 tokens of a stage.
template <Product P>
__device__ inline void multiply_stage(const Block<P> (&b)[kManyTiles], const char* stage, ManySums& total) {
  static_assert(!is_fp4(P), "FP4 matrices are experts, which have tiles of their own");
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  ManySums part = {};
  if constexpr (takes_act8(P)) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[2][kManyTiles][4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int m = 0; m < kManyTiles; ++m) {
          operand<P>(b[m], 2 * half + j, a[j][m]);
        }
      }
#pragma unroll
      for (int n = 0; n < kManyGroups; ++n) {
        const int row = n * 8 + g;
        const uint4 v = *reinterpret_cast<const uint4*>(stage + row * kStageRow<P> + piece_at<P>(g, half * 4 + t) * 16);
        const uint32_t x[2][2] = {{v.x, v.y}, {v.z, v.w}};
#pragma unroll
        for (int j = 0; j < 2; ++j) {
#pragma unroll
          for (int m = 0; m < kManyTiles; ++m) {
            mma_e4m3(part[m][n], a[j][m], x[j]);
          }
        }
      }
    }
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t a[2][kManyTiles][4];
#pragma unroll
      for (int m = 0; m < kManyTiles; ++m) {
        operand<P>(b[m], j, 0, a[0][m]);
        operand<P>(b[m], j, 1, a[1][m]);
      }
#pragma unroll
      for (int n = 0; n < kManyGroups; ++n) {
        const char* row = stage + (n * 8 + g) * kStageRow<P>;
        uint4 v;
        if constexpr (P == Product::kFp8Bf16) {
          const uint2 low = *reinterpret_cast<const uint2*>(row + piece_at<P>(g, j * 4 + t / 2) * 16 + t % 2 * 8);
          const uint2 high = *reinterpret_cast<const uint2*>(row + piece_at<P>(g, j * 4 + 2 + t / 2) * 16 + t % 2 * 8);
          v = {low.x, low.y, high.x, high.y};
        } else {
          v = *reinterpret_cast<const uint4*>(row + piece_at<P>(g, j * 4 + t) * 16);
        }
        const uint32_t x0[2] = {v.x, v.y}, x1[2] = {v.z, v.w};
#pragma unroll
        for (int m = 0; m < kManyTiles; ++m) {
          mma_bf16(part[m][n], a[0][m], x0);
          mma_bf16(part[m][n], a[1][m], x1);
        }
      }
    }
  }
  float scale[kManyGroups][2];
#pragma unroll
  for (int n = 0; n < kManyGroups; ++n) {
    scale[n][0] = scale[n][1] = 1.0f;
    if constexpr (takes_act8(P)) {
      const float* scales = reinterpret_cast<const float*>(stage + kManyTokens * kStageRow<P>);
      const float2 s = *reinterpret_cast<const float2*>(scales + n * 8 + 2 * t);
      scale[n][0] = s.x;
      scale[n][1] = s.y;
    }
  }
  add_block<P>(b, scale, part, total);
}

// total = the products of two tiles with 64 tokens, shares of K summed in order. `wk` warps (1, or all
// `split` shares) work side by side on shares of the same tiles; the ring has `stages` stages of wk blocks.
// `spare`: kManySums * kManyThreads floats where split > 1 (may overlap the ring if wk > 1). With wk > 1 each of
// the wk warps ends up with the sums [k, k + 1) * kManySums / wk of the lane's list, the rest of `total` is void.
template <Product P>
__device__ inline void multiply_many(const Tile (&tiles)[kManyTiles], const bool (&inside)[kManyTiles], int blocks, int split,
                                     int wk, int stages, const Pieces<P>& input, char* ring, float* spare, ManySums& total) {
  const int warp = threadIdx.x / 32, k = warp % wk;
  const int rounds = (blocks + wk - 1) / wk;  // of the ring
  // In order of shares where one warp has them all.
  const int shares = wk == 1 ? split : 1;
  const auto block_of = [&](int share, int i) { return wk == 1 ? share + i * split : i * wk + k; };
  const auto advance = [&](int& share, int& i) {
    ++i;
    if (wk == 1 && share + i * split >= blocks) {
      ++share;
      i = 0;
    }
  };
  const int stage_bytes = wk * kStageBytes<P>;
  int copied = 0, copy_share = 0, copy_i = 0;
  const auto copy_next = [&] {
    if (copied < rounds) {
      char* stage = ring + copied % stages * stage_bytes;
      if (wk == 1) {
        input.copy(stage, copy_share + copy_i * split, true);
      } else {
        for (int w = 0; w < wk; ++w) input.copy(stage + w * kStageBytes<P>, copy_i * wk + w, copy_i * wk + w < blocks);
      }
      advance(copy_share, copy_i);
    }
    copy_async_commit();
    ++copied;
  };
  for (int s = 0; s + 1 < stages; ++s) copy_next();

  Block<P> next[kManyTiles] = {};
  const auto load = [&](int block) {
#pragma unroll
    for (int m = 0; m < kManyTiles; ++m) {
      if (inside[m] && block < blocks) load_block<P>(tiles[m], block, next[m]);
    }
  };
  int share = 0, i = 0;
  load(block_of(share, i));
  for (int round = 0; round < rounds; ++round) {
    if (stages == 4) copy_async_wait<2>();
    else if (stages == 3) copy_async_wait<1>();
    else copy_async_wait<0>();
    __syncthreads();
    copy_next();
    Block<P> b[kManyTiles];
#pragma unroll
    for (int m = 0; m < kManyTiles; ++m) b[m] = next[m];
    const int block = block_of(share, i), before = share;
    advance(share, i);
    if (round + 1 < rounds) load(block_of(share, i));
    if (block < blocks) multiply_stage<P>(b, ring + round % stages * stage_bytes + k * kStageBytes<P>, total);
    if (wk == 1 && share != before && share < shares) {
      // The end of a share that is not the last.
      float* mine = spare + threadIdx.x;
#pragma unroll
      for (int e = 0; e < kManySums; ++e) {
        float& v = total[e / (kManyGroups * 4)][e / 4 % kManyGroups][e % 4];
        mine[e * kManyThreads] = before ? mine[e * kManyThreads] + v : v;
        v = 0.0f;
      }
    }
  }
  copy_async_wait<0>();
  if (split == 1) return;
  float* mine = spare + threadIdx.x;
  if (wk == 1) {
#pragma unroll
    for (int e = 0; e < kManySums; ++e) {
      float& v = total[e / (kManyGroups * 4)][e / 4 % kManyGroups][e % 4];
      v = mine[e * kManyThreads] + v;
    }
    return;
  }
  __syncthreads();  // the ring may lie there
#pragma unroll
  for (int e = 0; e < kManySums; ++e) mine[e * kManyThreads] = total[e / (kManyGroups * 4)][e / 4 % kManyGroups][e % 4];
  __syncthreads();
  const float* first = spare + (threadIdx.x - k * 32);
  const int per_warp = kManySums / wk;
#pragma unroll
  for (int e = 0; e < kManySums; ++e) {
    if (e / per_warp != k) continue;
    float sum = first[e * kManyThreads];
    for (int w = 1; w < wk; ++w) sum += first[e * kManyThreads + w * 32];
    total[e / (kManyGroups * 4)][e / 4 % kManyGroups][e % 4] = sum;
  }
}

}  // namespace dsv4::cuda
