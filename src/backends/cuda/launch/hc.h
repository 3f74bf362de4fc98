// What the kernels of mHC share: the parameters, and all arithmetic of which the results must not depend on how
// many tokens there are.
//
// Sums over D x hc are made of slices: 256 columns of one stream, 8 values a lane, added by a warp. Slices are added
// in kShares shares (slices s, s + 16, ... of the parts' hc streams in turn), then the shares in order.
#pragma once

#include "backends/cuda/core.h"
#include "backends/cuda/device/rows.cuh"

namespace dsv4::cuda {

inline constexpr int kPart = 256;    // columns of D
inline constexpr int kShares = 16;   // of the slices
inline constexpr int kMixRow = 32;   // floats of a slice's sums: mix rows of fn, then the squares
inline constexpr int kFnRows = 8;    // of fn that a warp holds
inline constexpr int kHcWarps = 12;  // of a block that holds fn of a part: 4 streams x 24 rows

struct Hc {
  bf16* streams;        // [rows, hc, D], changed where `out` is given
  const int32_t* rows;  // [T] or nullptr: 0, 1, ...
  const bf16* out;      // [T, D] of the sublayer before, or nullptr: no post
  const float* old_post;  // [T, hc]
  const float* old_comb;  // [T, hc, hc]
  const float* fn;      // [mix, hc * D]; nullptr: post alone
  const float* base;    // [mix]
  const float* scale;   // [3], or [1] for the head
  const bf16* norm;     // [D], or nullptr: no norm
  bf16* x;              // [T, D]
  float* post;          // [T, hc], nullptr for the head; may be old_post
  float* comb;          // [T, hc, hc]; may be old_comb
  float hc_eps, norm_eps;
  int32_t T, mix, D, iters;
};

inline constexpr int kMostColumns = 2 * static_cast<int>(kMaxCluster) * kPart;  // of D, a multiple of 4

// For many tokens: two kernels without clusters.
template <int HC>
Status hc_many(OpContext& ctx, const Hc& p);

// Within an ulp, and without the code that a division takes for all that does not occur here.
__device__ inline float reciprocal(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
__device__ inline float sigmoid(float x) { return reciprocal(1.0f + expf(-x)); }

__device__ inline float4 unpack4(uint2 w) {
  const float2 a = unpack2(w.x), b = unpack2(w.y);
  return {a.x, a.y, b.x, b.y};
}

// A lane's part of a slice's dot product: columns 4 lane .. + 3 of each half.
__device__ inline float lane_dot(const float4 (&u)[2], const float4 (&v)[2]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum = __fmaf_rn(u[i].x, v[i].x, __fmaf_rn(u[i].y, v[i].y, __fmaf_rn(u[i].z, v[i].z, __fmaf_rn(u[i].w, v[i].w, sum))));
  }
  return sum;
}

// Sums over the warp of N values, a power of two, each in the order of warp_sum. Slot i of lane l is value
// i ^ (l * N / 32), so that no step has to choose; lane l gets the sum of value l * N / 32.
template <int N, int O = 16>
__device__ float warp_sums(const float (&v)[N]) {
  if constexpr (N > 1) {
    float half[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) half[i] = v[i] + __shfl_xor_sync(~0u, v[i + N / 2], O);
    return warp_sums<N / 2, O / 2>(half);
  } else {
    float sum = v[0];
#pragma unroll
    for (int o = O; o; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
    return sum;
  }
}

// fn of one stream of a part in a warp's registers, in the slots of warp_sums.
struct HeldRows {
  float4 w[kFnRows][2];
  // Of the eight, that which slot r of this lane is.
  __device__ static int row_of(int r) { return r ^ static_cast<int>(threadIdx.x % 32) / (32 / kFnRows); }
  // Rows first_row .. + 7 of the mix; zeros where there are none, and beyond `count` columns.
  template <int HC>
  __device__ void load(const Hc& p, int first_row, int j, int first_column, int count) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < kFnRows; ++r) {
      const int row = first_row + row_of(r);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = (i * 32 + lane) * 4;
        w[r][i] = row < p.mix && at < count
                      ? __ldg(reinterpret_cast<const float4*>(p.fn + (row * HC + j) * p.D + first_column + at))
                      : float4{0, 0, 0, 0};
      }
    }
  }
};

// A column of stream l after post, before it is rounded: post_l * out + sum_j comb[j][l] X_j. Nothing is fused, so
// that streams round as those of the reference do.
template <int HC>
__device__ float post_value(float post, const float (&comb)[HC], float out, const float (&x)[HC]) {
  float mixed = comb[0] * x[0];
#pragma unroll
  for (int j = 1; j < HC; ++j) mixed += comb[j] * x[j];
  return post * out + mixed;
}
// A pair of columns of stream l; `comb` its column of the matrix.
template <int HC>
__device__ uint32_t post_pair(float post, const float (&comb)[HC], uint32_t out, const uint32_t (&x)[HC]) {
  float low[HC], high[HC];
#pragma unroll
  for (int j = 0; j < HC; ++j) {
    const float2 v = unpack2(x[j]);
    low[j] = v.x;
    high[j] = v.y;
  }
  const float2 o = unpack2(out);
  return pack2(post_value<HC>(post, comb, o.x, low), post_value<HC>(post, comb, o.y, high));
}

// BF16(sum_j pre_j X_j) of a pair of columns.
template <int HC>
__device__ uint32_t mix_pair(const float (&pre)[HC], const uint32_t (&x)[HC]) {
  float2 sum = unpack2(x[0]);
  sum = {pre[0] * sum.x, pre[0] * sum.y};
#pragma unroll
  for (int j = 1; j < HC; ++j) {
    const float2 v = unpack2(x[j]);
    sum = {__fmaf_rn(pre[j], v.x, sum.x), __fmaf_rn(pre[j], v.y, sum.y)};
  }
  return pack2(sum.x, sum.y);
}

// Squares of a pair as the norm adds them: over 32 pairs in the order of warp_sum, those sums by a warp.
__device__ inline float pair_square(uint32_t pair) {
  const float2 v = unpack2(pair);
  return __fmaf_rn(v.x, v.x, v.y * v.y);
}

// The projection z of a lane's row from the shares; lane `mix` has the squares.
template <int HC>
__device__ float project(const Hc& p, const float (&shares)[kShares][32]) {
  const int lane = threadIdx.x % 32;
  float sum = 0.0f;
#pragma unroll
  for (int s = 0; s < kShares; ++s) sum += shares[s][lane];
  const float all = __shfl_sync(~0u, sum, p.mix);
  return sum * rsqrtf(all * reciprocal(static_cast<float>(HC * p.D)) + p.norm_eps);
}

// A lane's factor and addend of post and comb.
struct SiteEnd {
  float post_scale = 0.0f, post_base = 0.0f, comb_scale = 0.0f, comb_base = 0.0f;
  template <int HC>
  __device__ void load(const Hc& p) {
    post_scale = p.scale[1];
    post_base = p.base[HC + threadIdx.x % HC];
    comb_scale = p.scale[2];
    comb_base = p.base[2 * HC + threadIdx.x % (HC * HC)];
  }
};

// post and comb of one token by one warp from its projections z, one a lane. A lane holds two rows of the matrix, next
// lanes the next ones: more rows would be more instructions, fewer more steps between lanes.
template <int HC>
__device__ void site_end(const Hc& p, int64_t t, float z, const SiteEnd& end) {
  constexpr int kRows = HC > 1 ? 2 : 1, kLanes = HC / kRows;
  const int lane = threadIdx.x % 32, row = lane % kLanes * kRows;
  const float post = __shfl_sync(~0u, z, HC + lane % HC) * end.post_scale + end.post_base;
  if (lane < HC) p.post[t * HC + lane] = 2.0f * sigmoid(post);
  const float value = __shfl_sync(~0u, z, 2 * HC + lane % (HC * HC)) * end.comb_scale + end.comb_base;
  float top = value;
#pragma unroll
  for (int o = 1; o < HC; o *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
  const float e = expf(value - top);
  float c[kRows][HC];
#pragma unroll
  for (int i = 0; i < kRows * HC; ++i) c[i / HC][i % HC] = __shfl_sync(~0u, e, row * HC + i);
  // Pairs first, along a row as along a column.
  const auto row_sum = [](const float (&v)[HC]) {
    if constexpr (HC == 1) return v[0];
    if constexpr (HC == 2) return v[0] + v[1];
    if constexpr (HC == 4) return (v[0] + v[1]) + (v[2] + v[3]);
  };
  const auto columns = [&] {
#pragma unroll
    for (int l = 0; l < HC; ++l) {
      float sum = c[0][l];
      if constexpr (kRows == 2) sum += c[1][l];
#pragma unroll
      for (int o = 1; o < kLanes; o *= 2) sum += __shfl_xor_sync(~0u, sum, o);
      const float f = reciprocal(sum + p.hc_eps);
#pragma unroll
      for (int r = 0; r < kRows; ++r) c[r][l] *= f;
    }
  };
  // What a reciprocal errs, the next iteration normalises again.
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float f = reciprocal(row_sum(c[r]));
#pragma unroll
    for (int l = 0; l < HC; ++l) c[r][l] = c[r][l] * f + p.hc_eps;
  }
  columns();
#pragma unroll 1
  for (int i = 1; i < p.iters; ++i) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float f = reciprocal(row_sum(c[r]) + p.hc_eps);
#pragma unroll
      for (int l = 0; l < HC; ++l) c[r][l] *= f;
    }
    columns();
  }
#pragma unroll
  for (int i = 0; i < kRows * HC; ++i) {
    if (lane < kLanes) p.comb[(t * HC + row) * HC + i] = c[i / HC][i % HC];
  }
}

}  // namespace dsv4::cuda
