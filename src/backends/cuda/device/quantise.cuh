// act8 on the device, in the order in which the B operand wants it.
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

// Quantised inputs lie as FP16 values of their E4M3 codes (exact), within each group of 32 of K in the
// order k = 16 s + 4 t + i -> 8 t + 4 s + i, so that lane t reads both steps with one 16-byte load.
// The four elements from k (a multiple of 4) stay together.
__device__ constexpr int quantised_at(int k) { return k / 32 * 32 + k % 16 / 4 * 8 + k % 32 / 16 * 4; }

__device__ inline uint2 pack_half4(const float (&v)[4]) {
  const __half2 a = __floats2half2_rn(v[0], v[1]), b = __floats2half2_rn(v[2], v[3]);
  return {*reinterpret_cast<const uint32_t*>(&a), *reinterpret_cast<const uint32_t*>(&b)};
}

// One group of 128 by one warp: lane l gives elements 4 l .. 4 l + 3. Writes codes to `out` (the
// group's first element) and returns the scale, to every lane.
__device__ inline float quantise_group(const float (&v)[4], uint16_t* out) {
  float amax = 0.0f;
  for (int i = 0; i < 4; ++i) {
    const float a = abs_bits(v[i]);
    amax = a > amax ? a : amax;  // a NaN does not take part
  }
  amax = warp_max(amax);
  const uint8_t b = act8_scale_byte(amax);
  const float inverse = ue8m0_inverse(b);
  float code[4];
  for (int i = 0; i < 4; ++i) code[i] = e4m3_to_float(float_to_e4m3(v[i] * inverse));
  const int lane = threadIdx.x % 32;
  *reinterpret_cast<uint2*>(out + quantised_at(4 * lane)) = pack_half4(code);
  return ue8m0_to_float(b);
}

// Elements 4 l .. 4 l + 3 of group `block` of a BF16 row; 0 past its end.
__device__ inline void load_group(const bf16* row, int cols, int block, float (&v)[4]) {
  const int k = block * kBlockK + 4 * (threadIdx.x % 32);
  if (k + 4 <= cols && cols % 4 == 0) {
    const uint2 w = *reinterpret_cast<const uint2*>(row + k);
    v[0] = bits_to_float(w.x << 16);
    v[1] = bits_to_float(w.x & 0xffff0000u);
    v[2] = bits_to_float(w.y << 16);
    v[3] = bits_to_float(w.y & 0xffff0000u);
    return;
  }
  for (int i = 0; i < 4; ++i) v[i] = k + i < cols ? to_float(row[k + i]) : 0.0f;
}

}  // namespace dsv4::cuda
