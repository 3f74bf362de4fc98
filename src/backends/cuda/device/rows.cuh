// One vector by one warp, in registers as floats: RoPE, norms, Hadamard, fake quantisers. Lane l holds
// the quads of elements k * 128 + 4 l .. + 3 for k < Q; elements past n are 0 and take no part.
#pragma once

#include "backends/cuda/device/quantise.cuh"
#include "ops/args/attention.h"

namespace dsv4::cuda {

inline constexpr int kQuads = 4;  // of a key/value row
inline constexpr int kMaxRow = kQuads * 128;

// Two BF16 values in one word, the first one low.
__device__ inline float2 unpack2(uint32_t w) { return {bits_to_float(w << 16), bits_to_float(w & 0xffff0000u)}; }
__device__ inline uint32_t pack2(float low, float high) {
  return static_cast<uint32_t>(to_bf16(low).bits) | static_cast<uint32_t>(to_bf16(high).bits) << 16;
}

// x * (c + i s) of the pair (re, im); every product and sum rounded on its own, results as BF16 values.
__device__ inline void rotate_pair(float& re, float& im, float s, float c) {
  const float a = re, b = im;
  re = round_bf16(a * c - b * s);
  im = round_bf16(a * s + b * c);
}

__device__ inline int element_of(int k) { return k * 128 + static_cast<int>(threadIdx.x % 32) * 4; }

// Rows of a multiple of 4 values, aligned to 8 bytes.
template <int Q>
__device__ void load_row(const bf16* row, int n, float (&x)[Q][4]) {
#pragma unroll
  for (int k = 0; k < Q; ++k) {
    const int i = element_of(k);
    const uint2 w = i < n ? *reinterpret_cast<const uint2*>(row + i) : uint2{0, 0};
    const float2 a = unpack2(w.x), b = unpack2(w.y);
    x[k][0] = a.x;
    x[k][1] = a.y;
    x[k][2] = b.x;
    x[k][3] = b.y;
  }
}
template <int Q>
__device__ void store_row(const float (&x)[Q][4], int n, bf16* row) {
#pragma unroll
  for (int k = 0; k < Q; ++k) {
    const int i = element_of(k);
    if (i < n) *reinterpret_cast<uint2*>(row + i) = {pack2(x[k][0], x[k][1]), pack2(x[k][2], x[k][3])};
  }
}

// sin and cos of this lane's pairs for the RoPE on the last r of n elements; pairs outside keep still.
template <int Q>
struct Rotation {
  float s[Q][2], c[Q][2];

  __device__ Rotation(const RopeView& rope, int n, int position, bool inverse) {
    const int from = n - static_cast<int>(rope.r);
#pragma unroll
    for (int k = 0; k < Q; ++k) {
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        const int i = element_of(k) + 2 * p;
        s[k][p] = 0.0f;
        c[k][p] = 1.0f;
        if (i < from || i >= n) continue;
        const float angle = static_cast<float>(position) * rope.freqs[(i - from) / 2];
        sincosf(angle, &s[k][p], &c[k][p]);
        if (inverse) s[k][p] = -s[k][p];
      }
    }
  }
  __device__ void apply(float (&x)[Q][4], int n, int64_t r) const {
    const int from = n - static_cast<int>(r);
#pragma unroll
    for (int k = 0; k < Q; ++k) {
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        const int i = element_of(k) + 2 * p;
        if (i >= from && i < n) rotate_pair(x[k][2 * p], x[k][2 * p + 1], s[k][p], c[k][p]);
      }
    }
  }
};

// RMSNorm, result as BF16 values; w as loaded by load_row.
template <int Q>
__device__ void norm_row(float (&x)[Q][4], const float (&w)[Q][4], int n, float eps) {
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < Q; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) squares = __fmaf_rn(x[k][i], x[k][i], squares);
  }
  const float r = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(n) + eps);
#pragma unroll
  for (int k = 0; k < Q; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[k][i] = round_bf16(x[k][i] * r * w[k][i]);
  }
}

// kv8 on the first n values (BF16 values in, BF16 values out), groups of 64: 16 lanes of a quad.
template <int Q>
__device__ void kv8_row(float (&x)[Q][4], int n) {
  static_assert(kKv8Group == 64);
#pragma unroll
  for (int k = 0; k < Q; ++k) {
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float a = abs_bits(x[k][i]);
      if (element_of(k) + i < n) amax = a > amax ? a : amax;
    }
    for (int o = 8; o; o /= 2) amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, o));
    const uint8_t b = act8_scale_byte(amax);
    const float inverse = ue8m0_inverse(b), scale = ue8m0_to_float(b);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (element_of(k) + i < n) x[k][i] = round_bf16(e4m3_to_float(float_to_e4m3(x[k][i] * inverse)) * scale);
    }
  }
}

// An index vector of n = 64 or 128 values: one quad per lane.

// idx4, groups of 32: 8 lanes.
__device__ inline void idx4_row(float (&x)[1][4]) {
  static_assert(kIdx4Group == 32);
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float a = abs_bits(x[0][i]);
    amax = a > amax ? a : amax;  // a NaN does not take part
  }
  for (int o = 4; o; o /= 2) amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, o));
  const uint8_t b = idx4_scale_byte(amax);
  const float inverse = ue8m0_inverse(b), scale = ue8m0_to_float(b);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float v = x[0][i];
    if (v == v) x[0][i] = round_bf16(e2m1_to_float(float_to_e2m1(v * inverse)) * scale);
  }
}

// Sylvester order, times n^-1/2, results as BF16 values.
__device__ inline void hadamard(float (&x)[1][4], int n) {
  float(&v)[4] = x[0];
  const float a = v[0] + v[1], b = v[0] - v[1], c = v[2] + v[3], d = v[2] - v[3];
  v[0] = a + c;
  v[1] = b + d;
  v[2] = a - c;
  v[3] = b - d;
  for (int o = 1; o < n / 4; o *= 2) {
    const bool second = threadIdx.x & o;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float other = __shfl_xor_sync(~0u, v[i], o);
      v[i] = second ? other - v[i] : v[i] + other;
    }
  }
  const float scale = 1.0f / sqrtf(static_cast<float>(n));
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = round_bf16(v[i] * scale);
}

}  // namespace dsv4::cuda
