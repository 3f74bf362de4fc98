// act8 on the device.
#pragma once

#include <cuda_fp16.h>

#include "backends/cuda/packed.h"
#include "formats/quantise.h"

namespace dsv4::cuda {

__device__ inline float warp_max(float v) {
  for (int i = 16; i; i /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, i));
  return v;
}
__device__ inline float warp_sum(float v) {
  for (int i = 16; i; i /= 2) v += __shfl_xor_sync(~0u, v, i);
  return v;
}

// Round to nearest even, clamped to +-448.
__device__ inline uint32_t to_e4m3x4(const float (&v)[4]) {
  uint16_t low, high;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(v[1]), "f"(v[0]));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(v[3]), "f"(v[2]));
  return static_cast<uint32_t>(low) | static_cast<uint32_t>(high) << 16;
}

// Two E4M3 codes as floats, the low one first.
__device__ inline float2 from_e4m3x2(uint32_t codes) {
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(codes)));
  return __half22float2(*reinterpret_cast<const __half2*>(&halves));
}

// act8(x) of one group of 128 by one warp as BF16, which holds code times scale exactly: lane l gives elements
// 4 l .. 4 l + 3 and gets them back.
__device__ inline uint2 act8_four(const float (&v)[4]) {
  float amax = 0.0f;
  for (int i = 0; i < 4; ++i) {
    const float a = abs_bits(v[i]);
    amax = a > amax ? a : amax;  // a NaN does not take part
  }
  amax = warp_max(amax);
  const uint8_t b = act8_scale_byte(amax);
  const float scale = ue8m0_to_float(b), inverse = ue8m0_inverse(b);
  float code[4];
  for (int i = 0; i < 4; ++i) code[i] = v[i] * inverse;
  const uint32_t codes = to_e4m3x4(code);
  const float2 low = from_e4m3x2(codes), high = from_e4m3x2(codes >> 16);
  const auto pair = [&](const float2& x) {
    return float_to_bits(x.x * scale) >> 16 | (float_to_bits(x.y * scale) & 0xffff0000u);
  };
  return {pair(low), pair(high)};
}

// What a lane has of act8_four() to its places in the group of 128 at `group`.
__device__ inline void store_rounded(void* group, uint2 four) {
  const int lane = threadIdx.x % 32;
  uint32_t* const to = static_cast<uint32_t*>(group) + rounded_place(4 * lane) / 2;
  to[0] = four.x;
  to[rounded_place(2) / 2] = four.y;
}

// Elements 4 l .. 4 l + 3 of group `block` of a BF16 row, 0 past its end: as they are, and as floats.
__device__ inline uint2 load_four(const bf16* row, int cols, int block) {
  const int k = block * kBlockK + 4 * (threadIdx.x % 32);
  if (k + 4 <= cols && cols % 4 == 0) return *reinterpret_cast<const uint2*>(row + k);
  uint32_t v[4];
  for (int i = 0; i < 4; ++i) v[i] = k + i < cols ? row[k + i].bits : 0u;
  return {v[0] | v[1] << 16, v[2] | v[3] << 16};
}
__device__ inline void unpack_four(uint2 w, float (&v)[4]) {
  v[0] = bits_to_float(w.x << 16);
  v[1] = bits_to_float(w.x & 0xffff0000u);
  v[2] = bits_to_float(w.y << 16);
  v[3] = bits_to_float(w.y & 0xffff0000u);
}
__device__ inline void load_group(const bf16* row, int cols, int block, float (&v)[4]) { unpack_four(load_four(row, cols, block), v); }

}  // namespace dsv4::cuda
