// The product of multiply.cuh for many tokens, bit for bit, on warpgroups: 64 rows of a weight from the registers of
// four warps, 32 to 128 tokens from shared memory. Warps of their own bring the tokens: what they wrote must be made
// visible to products by a fence that waits for all loads of a thread, which would empty the others' queues of weights.
#pragma once

#include "backends/cuda/device/barrier.cuh"
#include "backends/cuda/device/multiply.cuh"
#include "backends/cuda/device/wgmma.cuh"

namespace dsv4::cuda {

inline constexpr int kManyWarps = 8;                          // that multiply: two warpgroups
inline constexpr int kManyRows = kManyWarps * kTileRows;      // with a tile per warp
inline constexpr int kStages = 4;                             // blocks of input
inline constexpr int kBringers = 4;                           // warps that bring them, in turn
inline constexpr int kManyThreads = (kManyWarps + kBringers) * 32, kMultiplyThreads = kManyWarps * 32;

// One block of K of N tokens: two halves of rows of 128 bytes, each as token_piece() has them.
template <int N>
inline constexpr int kInputBytes = 2 * N * kTokenRowBytes;
template <int N>
inline constexpr int kRingBytes = kStages * kInputBytes<N>;

// The barriers of a ring, and where its tokens are: in pieces of 16 bytes from the first row. Past the last one it is
// the first again: what becomes of it nobody reads.
template <int N>
struct Ring {
  uint64_t full[kStages], empty[kStages];
  uint32_t rows[N];
};
// By all threads. Token n is row row_of(n), rows `stride` bytes apart.
template <int N, class RowOf>
__device__ inline void init_ring(Ring<N>& ring, int64_t stride, int tokens, const RowOf& row_of) {
  if (threadIdx.x < N) {
    const int n = static_cast<int>(threadIdx.x) < tokens ? static_cast<int>(threadIdx.x) : 0;
    ring.rows[threadIdx.x] = tokens > 0 ? static_cast<uint32_t>(row_of(n) * (stride / 16)) : 0;
  }
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(ring.full + s, 32);
      barrier_init(ring.empty + s, kManyWarps);
    }
  }
  __syncthreads();
}

// By the warps from kManyWarps on: blocks first, next(first), ..., `count` of them, of the rows of x to `to`.
template <int N, class Next>
__device__ inline void bring_tokens(const void* x, int first, int count, const Next& next, Ring<N>& ring, char* to) {
  const int bringer = threadIdx.x / 32 - kManyWarps, lane = threadIdx.x % 32, piece = lane % 16, first_row = lane / 16;
  // Every second row of a lane; their places repeat from tile to tile.
  to += piece / 8 * (N * kTokenRowBytes);
  int places[4];
#pragma unroll
  for (int q = 0; q < 4; ++q) places[q] = token_piece(first_row + 2 * q, piece % 8);
  int block = first;
  for (int i = 0; i < bringer; ++i) block = next(block);
  for (int i = bringer; i < count; i += kBringers) {
    const int stage = i % kStages;
    if (i >= kStages) barrier_wait(ring.empty + stage, i / kStages - 1);
    const char* from = static_cast<const char*>(x) + block * (kBlockK * 2) + piece * 16;
    char* const to_stage = to + stage * kInputBytes<N>;
#pragma unroll
    for (int tile = 0; tile < N / 8; ++tile) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int64_t row = ring.rows[first_row + tile * 8 + 2 * q];
        copy_async_16(to_stage + places[q] + tile * kTokenTileBytes, from + row * 16);
      }
    }
    copy_async_commit();
    copy_async_wait<0>();
    fence_for_wgmma();
    barrier_arrive(ring.full + stage);
    for (int b = 0; b < kBringers; ++b) block = next(block);
  }
}

// Blocks of weights in registers: one is multiplied, and another on its way where there is room.
template <int MA, int N>
inline constexpr int kHeld = MA * N >= 128 && MA > 1 ? 1 : 2;
template <Product P, int MA, int N>
using Held = Block<P>[kHeld<MA, N>][MA];
template <Product P, int MA>
__device__ inline void load_blocks(const Tile (&tiles)[MA], int block, Block<P> (&b)[MA]) {
#pragma unroll
  for (int m = 0; m < MA; ++m) load_block<P>(tiles[m], block, b[m]);
}

// total += one block of this warp's MA tiles times N tokens at `input` in shared memory, by groups of products: half of
// a block of a tile each. Those before the last two groups have ended when it returns. All warps of a warpgroup come
// together. used(m) comes when tile m has become operands.
template <Product P, int MA, int N, class Used>
__device__ inline void multiply_block(const Block<P> (&b)[MA], const char* input, float (&total)[MA][N / 2], const Used& used) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(input));
  uint32_t a[2][2][2][4];  // [half][group of 32][step]
#pragma unroll
  for (int i = 0; i < 2 * MA; ++i) {
    const int m = i / 2, half = i % 2;
    wgmma_wait<1>();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      operands<P>(b[m], half * 2 + k, a[half][k]);
      wgmma_arrive();
      const uint32_t tokens = at + half * (N * kTokenRowBytes) + k * 64;
      wgmma_bf16(total[m], a[half][k][0], token_descriptor(tokens));
      wgmma_bf16(total[m], a[half][k][1], token_descriptor(tokens + 32));
    }
    wgmma_commit();
    if (half == 1) used(m);
  }
#else
  // Other architectures: warp by warp.
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    uint32_t a[MA][2][4];
#pragma unroll
    for (int m = 0; m < MA; ++m) operands<P>(b[m], j, a[m]);
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const char* half = input + j / 2 * (N * kTokenRowBytes) + t * 4;
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
        uint32_t x[2];
        for (int i = 0; i < 2; ++i) x[i] = *reinterpret_cast<const uint32_t*>(half + n * kTokenTileBytes + token_piece(g, j % 2 * 4 + s * 2 + i));
#pragma unroll
        for (int m = 0; m < MA; ++m) mma_bf16(*reinterpret_cast<float(*)[4]>(&total[m][4 * n]), a[m][s], x);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < MA; ++m) used(m);
#endif
}

// All products have ended; their sums may be read.
template <int MA, int N>
__device__ inline void products_done(float (&total)[MA][N]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  wgmma_wait<0>();
#pragma unroll
  for (int m = 0; m < MA; ++m) wgmma_written(total[m]);
#endif
}

// By the first kManyWarps warps: total += MA tiles of this warp times the tokens of the ring, block by block as
// bring_tokens() has them at `input`. weights: the first blocks. between(total) comes where ends(block, following), with all
// products before done.
template <Product P, int MA, int N, class Next, class Ends, class Between>
__device__ inline void multiply_many(const Tile (&tiles)[MA], int first, int count, const Next& next, Held<P, MA, N>& weights,
                                     Ring<N>& ring, const char* input, float (&total)[MA][N / 2], const Ends& ends,
                                     const Between& between) {
  int block = first, following = next(first), second = next(following);
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#pragma unroll
  for (int m = 0; m < MA; ++m) wgmma_written(total[m]);
#endif
  const auto step = [&](int i, Block<P> (&now)[MA]) {
    const int stage = i % kStages;
    barrier_wait(ring.full + stage, i / kStages);
    const int later = kHeld<MA, N> == 2 ? second : following;
    multiply_block<P, MA, N>(now, input + stage * kInputBytes<N>, total, [&](int m) {
      // BF16 codes are the operands: they stay until their products have ended.
      if (P != Product::kBf16 && i + kHeld<MA, N> < count) load_block<P>(tiles[m], later, now[m]);
    });
    // Products of the block before have ended.
    if (i > 0 && threadIdx.x % 32 == 0) barrier_arrive(ring.empty + (i - 1) % kStages);
    if (P == Product::kBf16) {
      products_done(total);
      if (i + kHeld<MA, N> < count) load_blocks<P>(tiles, later, now);
    }
    if (i + 1 < count && ends(block, following)) {
      products_done(total);
      between(total);
    }
    block = following;
    following = second;
    second = next(second);
  };
  for (int i = 0; i < count; i += kHeld<MA, N>) {
#pragma unroll
    for (int h = 0; h < kHeld<MA, N>; ++h) {
      if (i + h < count) step(i + h, weights[h]);
    }
  }
  products_done(total);
}

}  // namespace dsv4::cuda
