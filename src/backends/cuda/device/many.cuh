// The product of multiply.cuh for many tokens, bit for bit, on warpgroups: 64 rows of a weight from the registers of
// four warps, 32 to 128 tokens from shared memory.
#pragma once

#include "backends/cuda/device/multiply.cuh"
#include "backends/cuda/device/wgmma.cuh"

namespace dsv4::cuda {

inline constexpr int kManyWarps = 8, kManyThreads = kManyWarps * 32;
inline constexpr int kManyRows = kManyWarps * kTileRows;  // of a block of threads: two warpgroups

// One block of K of N tokens: two halves of rows of 128 bytes, each as token_piece() has them. Within a group of 32
// along K elements lie in the order in which the lanes of a weight's packed block have them.
template <int N>
inline constexpr int kInputBytes = 2 * N * kTokenRowBytes;

// What a thread moves of a block of input: groups of 32 elements, through registers.
template <int N>
struct InputPieces {
  static constexpr int kCount = N * 4 > kManyThreads ? N * 4 / kManyThreads : 1;
  const char* from[kCount];  // the thread's group of block 0, or nullptr: absent
  uint4 v[kCount][4];

  // Two neighbouring groups of a row, then the next row: 8 threads write 8 different places of 16 bytes.
  __device__ static int token_of(int i) { return (threadIdx.x + i * kManyThreads) / 2 % N; }
  __device__ static int group_of(int i) { return (threadIdx.x + i * kManyThreads) / (2 * N) * 2 + threadIdx.x % 2; }

  // Token n is row row_of(n) of x, rows `stride` bytes apart.
  template <class RowOf>
  __device__ InputPieces(const void* x, int64_t stride, int tokens, const RowOf& row_of) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool present = token_of(i) < tokens && group_of(i) < 4;
      from[i] = present ? static_cast<const char*>(x) + row_of(token_of(i)) * stride + group_of(i) * 64 : nullptr;
    }
  }
  __device__ void load(int block) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        v[i][c] = from[i] ? *reinterpret_cast<const uint4*>(from[i] + block * (kBlockK * 2) + c * 16) : uint4{0, 0, 0, 0};
      }
    }
  }
  // For weights of product P.
  template <Product P>
  __device__ void store(char* at) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int n = token_of(i), j = group_of(i);
      if (N * 4 < kManyThreads && j >= 4) continue;
      char* half = at + j / 2 * (N * kTokenRowBytes);
      const auto put = [&](int c, uint32_t a, uint32_t b, uint32_t d, uint32_t e) {
        *reinterpret_cast<uint4*>(half + token_piece(n, j % 2 * 4 + c)) = {a, b, d, e};
      };
      const uint4(&x)[4] = v[i];
      if constexpr (P == Product::kBf16) {
        put(0, x[0].x, x[1].x, x[2].x, x[3].x);
        put(1, x[0].y, x[1].y, x[2].y, x[3].y);
        put(2, x[0].z, x[1].z, x[2].z, x[3].z);
        put(3, x[0].w, x[1].w, x[2].w, x[3].w);
      } else {
        put(0, x[0].x, x[0].z, x[1].x, x[1].z);
        put(1, x[0].y, x[0].w, x[1].y, x[1].w);
        put(2, x[2].x, x[2].z, x[3].x, x[3].z);
        put(3, x[2].y, x[2].w, x[3].y, x[3].w);
      }
    }
  }
};

// Where registers allow it weights are loaded two blocks ahead, else one.
template <Product P, int MA, int N>
inline constexpr bool kTwoAhead = MA * code_vectors(P) <= 4 && !(P == Product::kFp8 && N <= 64);

// total += one block of this warp's MA tiles times N tokens at `input` in shared memory. All warps of a warpgroup come
// together; `meanwhile` runs while the products do.
template <Product P, int MA, int N, class Meanwhile>
__device__ inline void multiply_block(const Block<P> (&b)[MA], const char* input, float (&total)[MA][N / 2], const Meanwhile& meanwhile) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(input));
  uint32_t a[MA][4][2][4];
#pragma unroll
  for (int m = 0; m < MA; ++m) wgmma_written(total[m]);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int m = 0; m < MA; ++m) {
      operands<P>(b[m], j, a[m][j]);
      wgmma_arrive();
      const uint32_t tokens = at + j / 2 * (N * kTokenRowBytes) + j % 2 * 64;
      wgmma_bf16(total[m], a[m][j][0], token_descriptor(tokens));
      wgmma_bf16(total[m], a[m][j][1], token_descriptor(tokens + 32));
    }
  }
  wgmma_commit();
  meanwhile();
  wgmma_wait<0>();
#pragma unroll
  for (int m = 0; m < MA; ++m) wgmma_written(total[m]);
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
  meanwhile();
#endif
}

// What a warp has of weights before it begins.
template <Product P, int MA, int N>
struct Weights {
  Block<P> now[MA], ahead[MA];
};
template <Product P, int MA>
__device__ inline void load_blocks(const Tile (&tiles)[MA], int block, Block<P> (&b)[MA]) {
#pragma unroll
  for (int m = 0; m < MA; ++m) load_block<P>(tiles[m], block, b[m]);
}

// total += MA tiles of this warp times N tokens over `count` blocks of K: `first`, then next(block) after each.
// weights.now, and .ahead where two are loaded ahead, hold the first already. after(block, following) comes after each
// block but the last. `ring`: two blocks of input, aligned to 1 KiB.
template <Product P, int MA, int N, class Next, class After>
__device__ inline void multiply_many(const Tile (&tiles)[MA], int first, int count, const Next& next, Weights<P, MA, N>& weights,
                                     InputPieces<N>& input, char* ring, float (&total)[MA][N / 2], const After& after) {
  int block = first, following = next(first);
  if (count > 0) {
    input.load(block);
    input.template store<P>(ring);
    if (count > 1) input.load(following);
  }
  fence_for_wgmma();
  __syncthreads();
  for (int i = 0; i < count; ++i) {
    const int second = next(following);
    multiply_block<P, MA, N>(weights.now, ring + i % 2 * kInputBytes<N>, total, [&] {
      if (i + 1 == count) return;
      input.template store<P>(ring + (i + 1) % 2 * kInputBytes<N>);
      // The fence waits for loads too: those of the next blocks come after it.
      fence_for_wgmma();
      if (i + 2 < count) input.load(second);
      if constexpr (kTwoAhead<P, MA, N>) {
#pragma unroll
        for (int m = 0; m < MA; ++m) weights.now[m] = weights.ahead[m];
        if (i + 2 < count) load_blocks<P>(tiles, second, weights.ahead);
      } else {
        load_blocks<P>(tiles, following, P == Product::kBf16 ? weights.ahead : weights.now);
      }
    });
    if (P == Product::kBf16) {
#pragma unroll
      for (int m = 0; m < MA; ++m) weights.now[m] = weights.ahead[m];
    }
    if (i + 1 < count) after(block, following);
    __syncthreads();
    block = following;
    following = second;
  }
}

}  // namespace dsv4::cuda
