// Norms and residual streams: sums over one row. Sixteen running sums, whatever the vector length: value
// i goes to sum i % 16, and the sixteen are added as a tree, so the result is the same everywhere.
#define DSV4_CPU_NO_BF16
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/row_kernels.cc"
#include "backends/cpu/targets.h"
#include <hwy/foreach_target.h>  // IWYU pragma: keep

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>

#include "backends/cpu/kernels.h"
#include "backends/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace dsv4::cpu::HWY_NAMESPACE {

using DD = hn::CappedTag<double, 8>;
inline constexpr int64_t kDoubles = static_cast<int64_t>(hn::MaxLanes(DD()));
using DDF = hn::Rebind<float, DD>;     // as many lanes as DD
using DDU = hn::Rebind<uint32_t, DD>;
using DDH = hn::Rebind<uint16_t, DD>;
inline constexpr int64_t kStep = static_cast<int64_t>(kLanes);

template <class T>
HWY_INLINE T tree16(T* v) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  }
  return v[0];
}

// Sum of f(x[i]) in FP64; kRounded: of BF16(x^2), else of x^2.
template <bool kRounded>
HWY_INLINE double sum_of_squares(const bf16* x, int64_t n) {
  constexpr int64_t kSums = 16 / kDoubles;
  const DD dd;
  const DDF df;
  const DDU du;
  hn::Vec<DD> acc[kSums];
  for (int64_t s = 0; s < kSums; ++s) acc[s] = hn::Zero(dd);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    DSV4_UNROLL
    for (int64_t s = 0; s < kSums; ++s) {
      const auto half = hn::LoadU(DDH(), reinterpret_cast<const uint16_t*>(x + i + s * kDoubles));
      const auto v = hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(du, half)));
      auto square = hn::Mul(v, v);
      if constexpr (kRounded) {
        const auto u = hn::BitCast(du, square);
        const auto odd = hn::And(hn::ShiftRight<16>(u), hn::Set(du, 1u));
        const auto up = hn::Add(hn::Add(u, hn::Set(du, 0x7fffu)), odd);
        square = hn::IfThenElse(hn::IsNaN(square), square, hn::BitCast(df, hn::And(up, hn::Set(du, 0xffff0000u))));
      }
      acc[s] = hn::Add(acc[s], hn::PromoteTo(dd, square));
    }
  }
  alignas(64) double lanes[16];
  for (int64_t s = 0; s < kSums; ++s) hn::Store(acc[s], dd, lanes + s * kDoubles);
  for (int64_t l = 0; i < n; ++i, ++l) {
    const float v = to_float(x[i]), square = v * v;
    lanes[l] += static_cast<double>(kRounded ? round_bf16(square) : square);
  }
  return tree16(lanes);
}

double sum_squares(const bf16* x, int64_t n) { return sum_of_squares<false>(x, n); }

void rms_norm(const bf16* x, const bf16* w, int64_t n, float eps, bf16* y) {
  const float mean = static_cast<float>(sum_of_squares<false>(x, n) / static_cast<double>(n));
  const float r = 1.0f / std::sqrt(mean + eps);
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    store_bf16(hn::Mul(hn::Mul(load_bf16(x + i), hn::Set(DF(), r)), load_bf16(w + i)), y + i);
  }
  for (; i < n; ++i) y[i] = to_bf16(to_float(x[i]) * r * to_float(w[i]));
}

// The published BF16 chain: bf(q^2), mean, + eps, rsqrt, product, each rounded.
void head_norm(bf16* q, int64_t d, float eps) {
  const float mean = round_bf16(static_cast<float>(sum_of_squares<true>(q, d) / static_cast<double>(d)));
  const float r = round_bf16(1.0f / std::sqrt(round_bf16(mean + eps)));
  int64_t i = 0;
  for (; i + kStep <= d; i += kStep) store_bf16(hn::Mul(load_bf16(q + i), hn::Set(DF(), r)), q + i);
  for (; i < d; ++i) q[i] = to_bf16(to_float(q[i]) * r);
}

// out[c] = sum_i x[i] * w[c * n + i] for c < count <= 4: FP32 chains of 32 values per sum, added up in
// FP64. The results steer every stream of the layer, so they deserve it.
template <size_t kCount>
HWY_INLINE void dots_of(const bf16* x, const float* w, int64_t n, float* out) {
  double total[kCount][16] = {};
  int64_t i = 0;
  while (i + 16 <= n) {
    V16 acc[kCount];
    DSV4_UNROLL
    for (size_t c = 0; c < kCount; ++c) acc[c] = set16(0.0f);
    for (const int64_t end = std::min(n - 15, i + 512); i < end; i += 16) {
      V16 v;
      DSV4_UNROLL
      for (size_t p = 0; p < kParts; ++p) v.v[p] = load_bf16(x + i + static_cast<int64_t>(p * kLanes));
      DSV4_UNROLL
      for (size_t c = 0; c < kCount; ++c) acc[c] = fma16(v, load16(w + static_cast<int64_t>(c) * n + i), acc[c]);
    }
    alignas(64) float lanes[16];
    for (size_t c = 0; c < kCount; ++c) {
      store16(acc[c], lanes);
      for (size_t l = 0; l < 16; ++l) total[c][l] += static_cast<double>(lanes[l]);
    }
  }
  for (size_t c = 0; c < kCount; ++c) {
    for (int64_t j = i; j < n; ++j) {
      total[c][j - i] += static_cast<double>(to_float(x[j])) * static_cast<double>(w[static_cast<int64_t>(c) * n + j]);
    }
    out[c] = static_cast<float>(tree16(total[c]));
  }
}

void dots(const bf16* x, const float* w, int64_t n, int64_t count, float* out) {
  switch (count) {
    case 4: return dots_of<4>(x, w, n, out);
    case 3: return dots_of<3>(x, w, n, out);
    case 2: return dots_of<2>(x, w, n, out);
    default: return dots_of<1>(x, w, n, out);
  }
}

// out[i] = BF16(sum_j pre[j] streams[j * D + i]), i in [begin, end)
void mix(const bf16* streams, const float* pre, int64_t hc, int64_t D, int64_t begin, int64_t end, bf16* out) {
  int64_t i = begin;
  for (; i + kStep <= end; i += kStep) {
    VF sum = hn::Zero(DF());
    for (int64_t j = 0; j < hc; ++j) {
      sum = hn::Add(sum, hn::Mul(hn::Set(DF(), pre[j]), load_bf16(streams + j * D + i)));
    }
    store_bf16(sum, out + i);
  }
  for (; i < end; ++i) {
    float sum = 0.0f;
    for (int64_t j = 0; j < hc; ++j) sum += pre[j] * to_float(streams[j * D + i]);
    out[i] = to_bf16(sum);
  }
}

// streams[l] = BF16(post[l] * out + sum_j comb[j][l] * streams[j]), values [begin, end)
void post(bf16* streams, const bf16* out, const float* weight, const float* comb, int64_t hc, int64_t D,
          int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + kStep <= end; i += kStep) {
    const VF o = load_bf16(out + i);
    VF x[kMaxStreams];
    for (int64_t j = 0; j < hc; ++j) x[j] = load_bf16(streams + j * D + i);
    for (int64_t l = 0; l < hc; ++l) {
      VF mixed = hn::Zero(DF());
      for (int64_t j = 0; j < hc; ++j) mixed = hn::Add(mixed, hn::Mul(hn::Set(DF(), comb[j * hc + l]), x[j]));
      store_bf16(hn::Add(hn::Mul(hn::Set(DF(), weight[l]), o), mixed), streams + l * D + i);
    }
  }
  for (; i < end; ++i) {
    float x[kMaxStreams];
    for (int64_t j = 0; j < hc; ++j) x[j] = to_float(streams[j * D + i]);
    for (int64_t l = 0; l < hc; ++l) {
      float mixed = 0.0f;
      for (int64_t j = 0; j < hc; ++j) mixed += comb[j * hc + l] * x[j];
      streams[l * D + i] = to_bf16(weight[l] * to_float(out[i]) + mixed);
    }
  }
}

RowKernels row_table() {
  return {.sum_squares = sum_squares,
          .rms_norm = rms_norm,
          .head_norm = head_norm,
          .dots = dots,
          .mix = mix,
          .post = post};
}

}  // namespace dsv4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dsv4::cpu {
HWY_EXPORT(row_table);
RowKernels row_kernels() { return HWY_DYNAMIC_DISPATCH(row_table)(); }
}  // namespace dsv4::cpu
#endif
