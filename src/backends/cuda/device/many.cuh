// The product of multiply.cuh for many tokens, bit for bit, on warpgroups: 64 rows of a weight from the registers of
// four warps, 32 to 128 tokens from shared memory.
#pragma once

#include "backends/cuda/device/multiply.cuh"
#include "backends/cuda/device/wgmma.cuh"

namespace dsv4::cuda {

inline constexpr int kManyWarps = 8, kManyThreads = kManyWarps * 32;
inline constexpr int kManyRows = kManyWarps * kTileRows;  // of a block of threads and a tile per warp: two warpgroups

// One block of K of N tokens: two halves of rows of 128 bytes, each as token_piece() has them. A ring of them: one or
// two are being multiplied, two on their way.
template <int N>
inline constexpr int kInputBytes = 2 * N * kTokenRowBytes;
inline constexpr int kStages = 4;
template <int N>
inline constexpr int kRingBytes = kStages * kInputBytes<N>;

// What a thread copies of a block of input: a piece of 16 bytes of some rows.
template <int N>
struct InputPieces {
  static constexpr int kRowsApart = kManyThreads / 16, kCount = N / kRowsApart;
  const char* from[kCount];  // of block 0; past the last token of the first one: what becomes of it nobody reads

  // Token n is row row_of(n) of x, rows `stride` bytes apart.
  template <class RowOf>
  __device__ InputPieces(const void* x, int64_t stride, int tokens, const RowOf& row_of) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int n = threadIdx.x / 16 + i * kRowsApart;
      from[i] = static_cast<const char*>(x) + (tokens > 0 ? row_of(n < tokens ? n : 0) * stride : 0) + threadIdx.x % 16 * 16;
    }
  }
  __device__ void copy(char* to, int block) const {
    const int piece = threadIdx.x % 16, n = threadIdx.x / 16;
    to += piece / 8 * (N * kTokenRowBytes) + token_piece(n, piece % 8);
    static_assert(kRowsApart % 8 == 0, "the same place in every tile");
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      copy_async_16(to + i * kRowsApart * kTokenRowBytes, from[i] + block * (kBlockK * 2));
    }
  }
};

// Blocks of weights in registers: one is multiplied, the next on its way.
template <Product P, int MA>
using Held = Block<P>[2][MA];
template <Product P, int MA>
__device__ inline void load_blocks(const Tile (&tiles)[MA], int block, Block<P> (&b)[MA]) {
#pragma unroll
  for (int m = 0; m < MA; ++m) load_block<P>(tiles[m], block, b[m]);
}

// total += one block of this warp's MA tiles times N tokens at `input` in shared memory, by groups of products: half of
// a block of a tile each. Those before the last two groups have ended when it returns. All warps of a warpgroup come
// together.
template <Product P, int MA, int N>
__device__ inline void multiply_block(const Block<P> (&b)[MA], const char* input, float (&total)[MA][N / 2]) {
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

// total += MA tiles of this warp times N tokens over `count` blocks of K: `first`, then next(block) after each.
// weights[0] is the first. between(total) comes where ends(block, following), with all products before done. `ring`:
// aligned to 1 KiB.
template <Product P, int MA, int N, class Next, class Ends, class Between>
__device__ inline void multiply_many(const Tile (&tiles)[MA], int first, int count, const Next& next, Held<P, MA>& weights,
                                     const InputPieces<N>& input, char* ring, float (&total)[MA][N / 2], const Ends& ends,
                                     const Between& between) {
  int block = first, following = next(first), second = next(following);
  if (count > 0) input.copy(ring, block);
  copy_async_commit();
  if (count > 1) input.copy(ring + kInputBytes<N>, following);
  copy_async_commit();
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#pragma unroll
  for (int m = 0; m < MA; ++m) wgmma_written(total[m]);
#endif
  const auto step = [&](int i, const Block<P> (&now)[MA], Block<P> (&ahead)[MA]) {
    copy_async_wait<1>();
    // It waits for all loads of the thread: the next ones come after it.
    fence_for_wgmma();
    __syncthreads();
    // To where the block before the last one was: its products have ended in every warp.
    if (i + 2 < count) input.copy(ring + (i + 2) % kStages * kInputBytes<N>, second);
    copy_async_commit();
    if (i + 1 < count) load_blocks<P>(tiles, following, ahead);
    multiply_block<P, MA, N>(now, ring + i % kStages * kInputBytes<N>, total);
    // BF16 codes are the operands: they stay until their products have ended.
    if (P == Product::kBf16) products_done(total);
    if (i + 1 < count && ends(block, following)) {
      products_done(total);
      between(total);
    }
    block = following;
    following = second;
    second = next(second);
  };
  for (int i = 0; i < count; i += 2) {
    step(i, weights[0], weights[1]);
    if (i + 1 < count) step(i + 1, weights[1], weights[0]);
  }
  products_done(total);
  copy_async_wait<0>();
}

}  // namespace dsv4::cuda
