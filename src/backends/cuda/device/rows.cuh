// One vector by one warp, in registers as floats: RoPE, norms, Hadamard, fake quantisers. Lane l holds
// the quads of elements k * 128 + 4 l .. + 3 for k < Q; elements past n are 0 and take no part.
#pragma once

#include "backends/cuda/device/quantise.cuh"
#include "ops/args/attention.h"

namespace dsv4::cuda {

inline constexpr int kQuads = 4;  // of a key/value row
inline constexpr int kMaxRow = kQuads * 128;

// x * (c + i s) of the pair (re, im); every product and sum rounded on its own, results as BF16 values.
__device__ inline void rotate_pair(float& re, float& im, float s, float c) {
  const float a = re, b = im;
  re = a * c - b * s;
  im = a * s + b * c;
  round2(re, im);
}

__device__ inline int element_of(int k) { return k * 128 + static_cast<int>(threadIdx.x % 32) * 4; }

// Rows of a multiple of 4 values, aligned to 8 bytes.
template <int Q>
__device__ void load_row(const bf16* row, int n, float (&x)[Q][4]) {
#pragma unroll
  for (int k = 0; k < Q; ++k) {
    const int i = element_of(k);
    unpack_four(i < n ? *reinterpret_cast<const uint2*>(row + i) : uint2{0, 0}, x[k]);
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

// sin and cos of a position's RoPE angles, one entry per pair, by `threads` threads of which this is
// number `thread`. Not inlined: the code is longer than all that uses it.
inline constexpr int kMaxPairs = 64;
__device__ inline float2 make_turn(const RopeView& rope, int position, int pair) {
  float s, c;
  sincosf(static_cast<float>(position) * rope.freqs[pair], &s, &c);
  return {s, c};
}
__device__ __noinline__ inline void make_turns(const RopeView& rope, int position, int thread, int threads, float2* turns) {
  for (int i = thread; i < rope.r / 2; i += threads) turns[i] = make_turn(rope, position, i);
}

// RoPE on the last r of n elements.
template <int Q>
__device__ void rotate(float (&x)[Q][4], int n, int64_t r, const float2* turns) {
  const int from = n - static_cast<int>(r);
#pragma unroll
  for (int k = 0; k < Q; ++k) {
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const int i = element_of(k) + 2 * p;
      if (i < from || i >= n) continue;
      const float2 turn = turns[(i - from) / 2];
      rotate_pair(x[k][2 * p], x[k][2 * p + 1], turn.x, turn.y);
    }
  }
}

// The nearest E2M1 value, ties to even, clamped; what float_to_e2m1 and back gives. v is no NaN.
__device__ inline float round_e2m1(float v) {
  const float a = abs_bits(v), grid = a < 2.0f ? 0x1p22f : a < 4.0f ? 0x1p23f : 0x1p24f;  // steps of .5, 1, 2
  return bits_to_float(float_to_bits(fminf(a + grid - grid, kE2m1Max)) | (float_to_bits(v) & 0x80000000u));
}

// RMSNorm of a row of n values, result as BF16 values: each lane adds the squares of all its quads, in order; then it may
// make those quads that it likes.
__device__ inline float add_squares(const float (&x)[4], float squares) {
#pragma unroll
  for (int i = 0; i < 4; ++i) squares = __fmaf_rn(x[i], x[i], squares);
  return squares;
}
__device__ inline void norm_quad(float (&x)[4], const float (&w)[4], float squares, int n, float eps) {
  const float r = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(n) + eps);
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = x[i] * r * w[i];
  round4(x);
}

// kv8 on the quads that lie in the first n values (BF16 values in, BF16 values out), groups of 64: 16 lanes.
__device__ inline void kv8_quad(float (&x)[4], int n) {
  static_assert(kKv8Group == 64);
  const bool inside = element_of(0) < n;  // whole quads are; what is BF16 stays as it is
  float amax = 0.0f;  // a NaN does not take part
#pragma unroll
  for (int i = 0; i < 4; ++i) amax = fmaxf(amax, inside ? fabsf(x[i]) : 0.0f);
  for (int o = 8; o; o /= 2) amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, o));
  float scale, inverse;
  act8_factors(amax, scale, inverse);
  const float v[4] = {x[0] * inverse, x[1] * inverse, x[2] * inverse, x[3] * inverse};
  const uint32_t codes = to_e4m3x4(v);
  const float2 low = from_e4m3x2(codes), high = from_e4m3x2(codes >> 16);
  if (inside) {
    x[0] = low.x * scale;
    x[1] = low.y * scale;
    x[2] = high.x * scale;
    x[3] = high.y * scale;
    round4(x);
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
    if (v == v) x[0][i] = round_e2m1(v * inverse) * scale;
  }
  round4(x[0]);
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
  for (int i = 0; i < 4; ++i) v[i] *= scale;
  round4(v);
}

}  // namespace dsv4::cuda
