// Warpgroup products on FP8 tensor cores: 64 rows of a weight from the registers of four warps, tokens from shared
// memory. One block of 128 along K is four products of 32, each summed by the tensor cores and then, times the
// weight's scale, in FP32.
#pragma once

#include "backends/cuda/device/multiply.cuh"

namespace dsv4::cuda {

// What this thread wrote to shared memory is there for products.
__device__ inline void fence_for_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Matrix descriptor of such tiles, one after the other, from shared address `at`.
__device__ inline uint64_t token_descriptor(uint32_t at) {
  return static_cast<uint64_t>((at & 0x3ffff) >> 4) | uint64_t{1} << 16 | uint64_t{kTokenTileBytes >> 4} << 32 | uint64_t{1} << 62;
}

// Registers that later products read or write are as the code before left them.
__device__ inline void wgmma_arrive() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// d = A B for 8 * N tokens: element 4 n + i is row g + i / 2 * 8 of this warp's 16, token 8 n + 2 t + i % 2.
__device__ inline void wgmma_first(float (&d)[4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, p, 1, 1;}"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void wgmma_first(float (&d)[8], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, p, 1, 1;}"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]), "=f"(d[4]), "=f"(d[5]), "=f"(d[6]), "=f"(d[7])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void wgmma_first(float (&d)[16], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, p, 1, 1;}"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]), "=f"(d[4]), "=f"(d[5]), "=f"(d[6]), "=f"(d[7]), "=f"(d[8]),
        "=f"(d[9]), "=f"(d[10]), "=f"(d[11]), "=f"(d[12]), "=f"(d[13]), "=f"(d[14]), "=f"(d[15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// After a wait: values that products wrote are read no earlier.
template <int N>
__device__ inline void wgmma_written(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

// total += one block of MA tiles per warp times NT * 8 tokens at shared address `tokens`; scales [NT * 8] of them.
// All warps of a warpgroup come together, with the same tokens.
template <Product P, int MA, int NT>
__device__ inline void multiply_tokens(const Block<P> (&b)[MA], uint32_t tokens, const float* scales, float (&total)[MA][NT][4]) {
  static_assert(P == Product::kFp8 || P == Product::kMxfp4);
  float part[MA][NT][4] = {};
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kGroups = NT < 4 ? NT : 4;        // of 8 tokens, in one product
  constexpr int kHalves = NT / kGroups;
  constexpr int kUnits = 4 * MA * kHalves;        // products of this block
  constexpr int kInFlight = kGroups == 1 ? 4 : 2;
  float acc[kInFlight][kGroups * 4];
  uint32_t a[2][MA][4];
  const auto add = [&](int u) {
    const int j = u / (MA * kHalves), m = u / kHalves % MA, h = u % kHalves;
    float(&sum)[kGroups * 4] = acc[u % kInFlight];
    wgmma_written(sum);
    float scale[2] = {1.0f, 1.0f};
    if constexpr (is_fp4(P)) {
      scale[0] = step_scale<P>(b[m], j, 0, 0);
      scale[1] = step_scale<P>(b[m], j, 0, 1);
    }
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& to = part[m][h * kGroups + n][i];
        if constexpr (is_fp4(P)) to = __fmaf_rn(sum[4 * n + i], scale[i / 2], to);
        else to = sum[4 * n + i] + to;
      }
    }
  };
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const int j = u / (MA * kHalves), m = u / kHalves % MA, h = u % kHalves;
    if (h == 0) operand<P>(b[m], j, a[j % 2][m]);
    wgmma_arrive();
    wgmma_first(acc[u % kInFlight], a[j % 2][m], token_descriptor(tokens + h * kGroups * kTokenTileBytes + j * 32));
    wgmma_commit();
    if (u >= kInFlight - 1) {
      wgmma_wait<kInFlight - 1>();
      add(u - (kInFlight - 1));
    }
  }
  if constexpr (kInFlight == 4) {
    wgmma_wait<2>();
    add(kUnits - 3);
    wgmma_wait<1>();
    add(kUnits - 2);
  }
  wgmma_wait<0>();
  add(kUnits - 1);
#else
  // Other architectures: warp by warp.
  const char* rows = static_cast<const char*>(__cvta_shared_to_generic(tokens)) + threadIdx.x % 4 * 4;
  const int g = threadIdx.x % 32 / 4;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    uint32_t x[NT][2];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      for (int s = 0; s < 2; ++s) x[n][s] = *reinterpret_cast<const uint32_t*>(rows + n * kTokenTileBytes + token_piece(g, 2 * j + s));
    }
    multiply_group<P>(b, j, x, part);
  }
#endif
  const int t = threadIdx.x % 4;
  float of_tokens[NT][2];
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    const float2 s = *reinterpret_cast<const float2*>(scales + n * 8 + 2 * t);
    of_tokens[n][0] = s.x * kCodeUnit<P>;
    of_tokens[n][1] = s.y * kCodeUnit<P>;
  }
  add_block<P>(b, of_tokens, part, total);
}

}  // namespace dsv4::cuda
