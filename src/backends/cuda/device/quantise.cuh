// act8 on the device.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backends/cuda/packed.h"
#include "formats/quantise.h"

namespace dsv4::cuda {

__device__ inline float warp_sum(float v) {
  for (int i = 16; i; i /= 2) v += __shfl_xor_sync(~0u, v, i);
  return v;
}

// Two BF16 values in one word, the first one low.
__device__ inline float2 unpack2(uint32_t w) { return {bits_to_float(w << 16), bits_to_float(w & 0xffff0000u)}; }
__device__ inline uint32_t pack2(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);  // one instruction
  return *reinterpret_cast<const uint32_t*>(&both);
}
// Both to BF16 values.
__device__ inline void round2(float& a, float& b) {
  const float2 v = unpack2(pack2(a, b));
  a = v.x;
  b = v.y;
}
__device__ inline void round4(float (&v)[4]) {
  round2(v[0], v[1]);
  round2(v[2], v[3]);
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

// Of act8 or kv8: 2^(b-127) and its inverse, with what act8_scale_byte(), ue8m0_to_float() and ue8m0_inverse() give, in
// fewer steps: b is at least 1. Returns b.
__device__ inline uint32_t act8_factors(float amax, float& scale, float& inverse) {
  const uint32_t exponent = (float_to_bits(fmaxf(amax, kE4m3AmaxFloor) * (1.0f / kE4m3Max)) + 0x7fffffu) & 0x7f800000u;
  scale = bits_to_float(exponent == 0x7f800000u ? 0x7fc00000u : exponent);
  inverse = bits_to_float(0x7f000000u - exponent);
  return exponent >> 23;
}

// act8(x) of one group of 128 by 128 / N lanes as BF16, which holds code times scale exactly: lane l of them gives elements
// N l .. N l + N - 1 and gets them back, in pairs.
template <int N>
__device__ inline void act8_values(const float (&v)[N], uint32_t (&pairs)[N / 2]) {
  float amax = 0.0f;  // a NaN does not take part
#pragma unroll
  for (int i = 0; i < N; ++i) amax = fmaxf(amax, fabsf(v[i]));
  for (int o = kAct8Group / N / 2; o; o /= 2) amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, o));
  float scale, inverse;
  act8_factors(amax, scale, inverse);
  const auto pair = [&](const float2& x) { return __byte_perm(float_to_bits(x.x * scale), float_to_bits(x.y * scale), 0x7632); };
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const float code[4] = {v[i] * inverse, v[i + 1] * inverse, v[i + 2] * inverse, v[i + 3] * inverse};
    const uint32_t codes = to_e4m3x4(code);
    pairs[i / 2] = pair(from_e4m3x2(codes));
    pairs[i / 2 + 1] = pair(from_e4m3x2(codes >> 16));
  }
}
__device__ inline uint2 act8_four(const float (&v)[4]) {
  uint32_t pairs[2];
  act8_values(v, pairs);
  return {pairs[0], pairs[1]};
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
