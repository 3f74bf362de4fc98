// Rows of the cache in FP8 (formats/kv_row.h) on the device. They lie as everywhere, 584 bytes for d = 512: every second
// one is aligned to 8 bytes only, so they are copied in pieces of 8, through L1, or with 8 bytes around them that make
// them multiples of 16 (allocate_device: those are always there).
#pragma once

#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/rows.cuh"
#include "formats/kv_row.h"

namespace dsv4::cuda {

__device__ inline void copy_async_8(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global));
}

// In BF16's places a code stands for its value times 2^-120 (packed.h), subnormals included; one factor brings it back
// where the scale is no larger than this, else a second one is needed.
inline constexpr uint32_t kLargestKvScale = 254 - kE4m3InPlace;
// The bits of the first factor, in both halves, of a scale that is no larger; and of the second.
__device__ inline uint32_t kv_factor(uint32_t scale) { return scale * 0x00800080u + (kE4m3InPlace << 7) * 0x10001u; }
__device__ inline uint32_t kv_second_factor(uint32_t scale) {
  if (scale == kUe8m0Nan) return 0x7fc0u;
  return (scale > kLargestKvScale ? scale - kLargestKvScale + 127 : 127) << 7;
}

// Bytes of a word in the order of `places`; 8 more than a place: eight times the sign of that byte.
__device__ inline uint32_t byte_perm_signs(uint32_t word, uint32_t places) {
  uint32_t d;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(d) : "r"(word), "r"(places));
  return d;
}
// Eight codes; the factor in both halves.
__device__ inline uint4 widen_codes(uint2 codes, uint32_t factor) {
  // Each code with its sign above it: four bits up, the sign is in its place, too.
  const auto pair = [&](uint32_t word, uint32_t places) {
    return mul_bf16x2(byte_perm_signs(word, places) << 4 & kE4m3Mask, factor);
  };
  return {pair(codes.x, 0x9180), pair(codes.x, 0xb3a2), pair(codes.y, 0x9180), pair(codes.y, 0xb3a2)};
}
__device__ inline uint4 scale_again(const uint4& v, uint32_t factor) {
  return {mul_bf16x2(v.x, factor), mul_bf16x2(v.y, factor), mul_bf16x2(v.z, factor), mul_bf16x2(v.w, factor)};
}

// Quads `k` of a row of n values, r of them RoPE dims, as kv8 left it; n and r are multiples of 8. By one warp.
__device__ inline void store_fp8_quads(const float (&x)[4], int k, int n, int r, char* row) {
  static_assert(kKv8Group == 64 && kQuads * 2 == kKvScaleBytes);
  const int codes = n - r, lane = threadIdx.x % 32, i = element_of(k);
  float amax = 0.0f;
  bool nan = false;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const float a = i < codes ? fabsf(x[e]) : 0.0f;
    amax = fmaxf(amax, a);
    nan |= a != a;
  }
  for (int o = 8; o; o /= 2) amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, o));
  const bool spoilt = __ballot_sync(~0u, nan) >> (lane & 16) & 0xffffu;
  float value, inverse;
  const uint32_t scale = act8_factors(amax, value, inverse);
  if (i < codes) {
    const float v[4] = {x[0] * inverse, x[1] * inverse, x[2] * inverse, x[3] * inverse};
    *reinterpret_cast<uint32_t*>(row + i) = to_e4m3x4(v);
  } else if (i < n) {
    *reinterpret_cast<uint2*>(row + 2 * i - codes) = {pack2(x[0], x[1]), pack2(x[2], x[3])};
  }
  if (lane % 16 == 0) row[codes + 2 * r + 2 * k + lane / 16] = static_cast<char>(i >= codes ? 0 : spoilt ? kUe8m0Nan : scale);
}
__device__ inline void store_fp8_row(const float (&x)[kQuads][4], int n, int r, char* row) {
#pragma unroll
  for (int k = 0; k < kQuads; ++k) store_fp8_quads(x[k], k, n, r, row);
}

}  // namespace dsv4::cuda
