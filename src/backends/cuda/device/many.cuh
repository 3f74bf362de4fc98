// The product of multiply.cuh for many tokens, bit for bit, on warpgroups: 64 rows of a weight from the registers of
// four warps, 32 to 128 tokens from shared memory, one chain of products over a share of K.
#pragma once

#include "backends/cuda/device/multiply.cuh"
#include "backends/cuda/device/wgmma.cuh"

namespace dsv4::cuda {

inline constexpr int kManyWarps = 8, kManyThreads = kManyWarps * 32;
inline constexpr int kManyRows = kManyWarps * kTileRows;  // of a block of threads: two warpgroups

// One block of K of N tokens: two halves of rows of 128 bytes, each as token_piece() has them. Within a group of 32
// along K elements lie in the order in which the lanes of a weight's packed block have them.
template <int N>
inline constexpr int kInputBytes = 2 * N * kBlockK;

// What a thread moves of a block of input: groups of 32 elements, through registers.
template <int N>
struct InputPieces {
  static constexpr int kCount = N * 4 > kManyThreads ? N * 4 / kManyThreads : 1;
  const char* from[kCount];  // the thread's group of block 0, or nullptr: absent
  uint4 v[kCount][4];

  // Two neighbouring groups of a row, then the next row: 8 threads write 8 different places of 16 bytes.
  __device__ static int token_of(int i) { return (threadIdx.x + i * kManyThreads) / 2 % N; }
  __device__ static int group_of(int i) { return (threadIdx.x + i * kManyThreads) / (2 * N) * 2 + threadIdx.x % 2; }

  // Rows of x `stride` bytes apart.
  __device__ InputPieces(const void* x, int64_t stride, int tokens) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool present = token_of(i) < tokens && group_of(i) < 4;
      from[i] = present ? static_cast<const char*>(x) + token_of(i) * stride + group_of(i) * 64 : nullptr;
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
      char* half = at + j / 2 * (N * kBlockK);
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

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// d += A B of BF16 for 64 rows, 16 of K and 32, 64 or 128 tokens: element 4 n + i is row g + i / 2 * 8 of this warp's
// 16, token 8 n + 2 t + i % 2.
__device__ inline void wgmma_bf16(float (&d)[16], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, 1, 1, 1, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void wgmma_bf16(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, 1, 1, 1, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void wgmma_bf16(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, 1, 1, 1, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
        "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
        "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
        "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

// total += one block of this warp's tile times N tokens at `input` in shared memory. All warps of a warpgroup come
// together; `meanwhile` runs while the products do.
template <Product P, int N, class Meanwhile>
__device__ inline void multiply_block(Block<P>& b, const char* input, float (&total)[N / 2], const Meanwhile& meanwhile) {
  constexpr int kSteps = kBlockK / 16;
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(input));
  uint32_t a[kSteps][4];
  wgmma_written(total);
#pragma unroll
  for (int q = 0; q < kSteps; ++q) {
    bf16_operand<P>(b, q, a[q]);
    wgmma_arrive();
    wgmma_bf16(total, a[q], token_descriptor(at + q / 4 * (N * kBlockK) + q % 4 * 32));
  }
  wgmma_commit();
  meanwhile();
  wgmma_wait<0>();
  wgmma_written(total);
#else
  // Other architectures: warp by warp.
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int q = 0; q < kSteps; ++q) {
    uint32_t a[4];
    bf16_operand<P>(b, q, a);
    const char* half = input + q / 4 * (N * kBlockK) + t * 4;
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
      uint32_t x[2];
      for (int s = 0; s < 2; ++s) x[s] = *reinterpret_cast<const uint32_t*>(half + n * kTokenTileBytes + token_piece(g, q % 4 * 2 + s));
      float(&sum)[4] = *reinterpret_cast<float(*)[4]>(&total[4 * n]);
      mma_bf16(sum, a, x);
    }
  }
  meanwhile();
#endif
}

// total = this warp's tile times N tokens over blocks first, first + step, ... of K, the first of them in `b` already.
// `ring`: two blocks of input, aligned to 1 KiB.
template <Product P, int N>
__device__ inline void multiply_many(const Tile& tile, bool inside, int blocks, int first, int step, Block<P>& b,
                                     InputPieces<N>& input, char* ring, float (&total)[N / 2]) {
  if (first < blocks) {
    input.load(first);
    input.template store<P>(ring);
  }
  fence_for_wgmma();
  __syncthreads();
  int stage = 0;
  for (int block = first; block < blocks; block += step) {
    const int next = block + step;
    if (next < blocks) input.load(next);
    Block<P> ahead = b;
    if (inside && next < blocks && P != Product::kFp8) load_block<P>(tile, next, ahead);
    multiply_block<P, N>(b, ring + stage * kInputBytes<N>, total, [&] {
      if (next >= blocks) return;
      // Codes of E4M3 have become operands: their registers are free.
      if (inside && P == Product::kFp8) load_block<P>(tile, next, ahead);
      input.template store<P>(ring + (stage ^ 1) * kInputBytes<N>);
      fence_for_wgmma();
    });
    b = ahead;
    __syncthreads();
    stage ^= 1;
  }
}

}  // namespace dsv4::cuda
