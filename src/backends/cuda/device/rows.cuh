// One vector by one warp, in shared memory as floats: RoPE, norms, Hadamard, fake quantisers.
#pragma once

#include "backends/cuda/device/quantise.cuh"
#include "ops/args/attention.h"

namespace dsv4::cuda {

// x[0..r) by position p; every product and sum rounded on its own, results to BF16 values.
__device__ inline void rotate(float* x, const RopeView& rope, int position, bool inverse) {
  for (int i = threadIdx.x % 32; i < rope.r / 2; i += 32) {
    const float angle = static_cast<float>(position) * rope.freqs[i];
    float s, c;
    sincosf(angle, &s, &c);
    if (inverse) s = -s;
    const float re = x[2 * i], im = x[2 * i + 1];
    x[2 * i] = round_bf16(re * c - im * s);
    x[2 * i + 1] = round_bf16(re * s + im * c);
  }
  __syncwarp();
}

// RMSNorm, result as BF16 values.
__device__ inline void norm_row(float* x, const bf16* w, int n, float eps) {
  const int lane = threadIdx.x % 32;
  float squares = 0.0f;
  for (int i = lane; i < n; i += 32) squares = __fmaf_rn(x[i], x[i], squares);
  const float r = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(n) + eps);
  for (int i = lane; i < n; i += 32) x[i] = round_bf16(x[i] * r * to_float(w[i]));
  __syncwarp();
}

// kv8 on n values (BF16 values in, BF16 values out), groups of 64.
__device__ inline void kv8_row(float* x, int n) {
  const int lane = threadIdx.x % 32;
  for (int g = 0; g < n; g += kKv8Group) {
    const int end = min(n, g + kKv8Group);
    float amax = 0.0f;
    for (int i = g + lane; i < end; i += 32) {
      const float a = abs_bits(x[i]);
      amax = a > amax ? a : amax;
    }
    const uint8_t b = act8_scale_byte(warp_max(amax));
    const float inverse = ue8m0_inverse(b), scale = ue8m0_to_float(b);
    for (int i = g + lane; i < end; i += 32) x[i] = round_bf16(e4m3_to_float(float_to_e4m3(x[i] * inverse)) * scale);
  }
  __syncwarp();
}

// idx4 on n values, groups of 32.
__device__ inline void idx4_row(float* x, int n) {
  const int lane = threadIdx.x % 32;
  for (int g = 0; g < n; g += kIdx4Group) {
    const float v = g + lane < n ? x[g + lane] : 0.0f;
    const float a = abs_bits(v);
    const uint8_t b = idx4_scale_byte(warp_max(a == a ? a : 0.0f));
    const float inverse = ue8m0_inverse(b), scale = ue8m0_to_float(b);
    if (g + lane < n && v == v) x[g + lane] = round_bf16(e2m1_to_float(float_to_e2m1(v * inverse)) * scale);
  }
  __syncwarp();
}

// Sylvester order, times n^-1/2, results as BF16 values; n a power of two.
__device__ inline void hadamard(float* x, int n) {
  const int lane = threadIdx.x % 32;
  for (int h = 1; h < n; h *= 2) {
    for (int i = lane; i < n / 2; i += 32) {
      const int at = i / h * 2 * h + i % h;
      const float u = x[at], v = x[at + h];
      x[at] = u + v;
      x[at + h] = u - v;
    }
    __syncwarp();
  }
  const float scale = 1.0f / sqrtf(static_cast<float>(n));
  for (int i = lane; i < n; i += 32) x[i] = round_bf16(x[i] * scale);
  __syncwarp();
}

// Rows of a multiple of 4 values, aligned to 8 bytes.
__device__ inline void load_row(const bf16* row, int n, float* x) {
#pragma unroll 4
  for (int i = threadIdx.x % 32 * 4; i < n; i += 128) {
    const uint2 w = *reinterpret_cast<const uint2*>(row + i);
    *reinterpret_cast<float4*>(x + i) = {bits_to_float(w.x << 16), bits_to_float(w.x & 0xffff0000u),
                                         bits_to_float(w.y << 16), bits_to_float(w.y & 0xffff0000u)};
  }
  __syncwarp();
}
__device__ inline void store_row(const float* x, int n, bf16* row) {
#pragma unroll 4
  for (int i = threadIdx.x % 32 * 4; i < n; i += 128) {
    const float4 v = *reinterpret_cast<const float4*>(x + i);
    const auto pair = [](float low, float high) {
      return static_cast<uint32_t>(to_bf16(low).bits) | static_cast<uint32_t>(to_bf16(high).bits) << 16;
    };
    *reinterpret_cast<uint2*>(row + i) = {pair(v.x, v.y), pair(v.z, v.w)};
  }
}

}  // namespace dsv4::cuda
