#include <cmath>

#include "bench/cases.h"

namespace dsv4::bench {
namespace {

// A NaN in row 1 and an infinity in the last row, where there are such rows.
void spoil(HostArray& x, int64_t T, int64_t K) {
  if (T < 3) return;
  x.as<bf16>()[K + 3] = bf16{0x7fc0};
  x.as<bf16>()[(T - 1) * K + K / 2] = bf16{0xff80};
}

size_t add_input(OpCase& c, int64_t T, int64_t K, Values values, Rng& rng) {
  const size_t x = add_normal(c, rng, "x", DType::kBF16, {T, K}, 1.0f);
  HostArray& a = c.arrays[x];
  // act8's groups see different ranges, an outlier now and then, and one group of zeros.
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t k = 0; k < K; k += 128) {
      const float factor = std::ldexp(1.0f, static_cast<int>(rng.below(6)) - 3);
      for (int64_t i = k; i < std::min(K, k + 128); ++i) {
        bf16& v = a.as<bf16>()[t * K + i];
        v = to_bf16(t == 0 && k == 128 ? 0.0f : to_float(v) * factor);
      }
      if (rng.below(8) == 0) a.as<bf16>()[t * K + k] = to_bf16(40.0f * factor);
    }
  }
  if (values == Values::kWithNan) spoil(a, T, K);
  return x;
}

Cost linear_cost(int64_t T, int64_t N, int64_t K, const HostWeight& w, DType y) {
  return {.weight_bytes = w.matrix_bytes(),
          .other_bytes = T * (2 * K + N * static_cast<int64_t>(dtype_size(y))),
          .flops = 2 * T * N * K};
}

struct GroupedArrays {
  size_t x, w, y;
};

GroupedArrays add_grouped(OpCase& c, const GroupedShape& s, Rng& rng) {
  const int64_t K = s.H * s.d / s.G, N = s.G * s.R;
  GroupedArrays a{};
  a.x = add_normal(c, rng, "o", DType::kBF16, {s.T, s.H, s.d}, 1.0f);
  HostWeight w = random_weight(WeightRole::kGrouped, s.format, N, K, rng);
  w.groups = s.G;
  c.cost = linear_cost(s.T, N, K, w, DType::kBF16);
  c.cost.other_bytes = 2 * s.T * (s.H * s.d + N);
  a.w = add_weight(c, std::move(w));
  a.y = add_array(c, "y", DType::kBF16, {s.T, N}, Use::kOut);
  c.rows = s.T;
  c.sum_length = K;
  split_rows(c);
  return a;
}

GroupedLinearArgs grouped_args(const Bound& b, const GroupedArrays& a, const GroupedShape& s,
                               const Step& step) {
  return {.x = b.at<bf16>(a.x) + step.first * s.H * s.d,
          .w = b.weight(a.w),
          .y = b.at<bf16>(a.y) + step.first * s.G * s.R,
          .T = step.rows,
          .G = s.G};
}

}  // namespace

OpCase rms_norm_case(int64_t T, int64_t N, Values values, uint64_t seed) {
  OpCase c{.op = "rms_norm", .rows = T};
  Rng rng(seed);
  const size_t x = add_input(c, T, N, values, rng);
  const size_t w = add_normal(c, rng, "w", DType::kBF16, {N}, 0.2f, Use::kIn, 1.0f);
  const size_t y = add_array(c, "y", DType::kBF16, {T, N}, Use::kOut);
  c.sum_length = N;
  c.cost = {.weight_bytes = 2 * N, .other_bytes = 4 * T * N, .flops = 4 * T * N};
  split_rows(c);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.rms_norm(ctx, {.x = b.at<bf16>(x) + step.first * N,
                                  .w = b.at<bf16>(w),
                                  .y = b.at<bf16>(y) + step.first * N,
                                  .T = step.rows,
                                  .N = N,
                                  .eps = 1e-6f});
  };
  return c;
}

OpCase linear_case(const LinearShape& s, Values values, uint64_t seed) {
  OpCase c{.op = "linear", .rows = s.T};
  Rng rng(seed);
  const size_t x = add_input(c, s.T, s.K, values, rng);
  HostWeight weight = random_weight(WeightRole::kLinear, s.format, s.N, s.K, rng);
  c.cost = linear_cost(s.T, s.N, s.K, weight, s.y_dtype);
  const size_t w = add_weight(c, std::move(weight));
  const size_t y = add_array(c, "y", s.y_dtype, {s.T, s.N}, Use::kOut);
  c.sum_length = s.K;
  split_rows(c);
  const auto stride = s.N * static_cast<int64_t>(dtype_size(s.y_dtype));
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.linear(ctx, {.x = b.at<bf16>(x) + step.first * s.K,
                                .w = b.weight(w),
                                .y = b.at<char>(y) + step.first * stride,
                                .y_dtype = s.y_dtype,
                                .T = step.rows});
  };
  return c;
}

OpCase linear_stack_case(const std::vector<LinearShape>& parts, bool norm, uint64_t seed) {
  const int64_t T = parts.front().T, K = parts.front().K;
  OpCase c{.op = "linear_stack", .rows = T};
  Rng rng(seed);
  const size_t x = add_input(c, T, K, Values::kFinite, rng);
  const size_t norm_at = c.arrays.size();
  if (norm) add_normal(c, rng, "norm", DType::kBF16, {K}, 0.2f, Use::kIn, 1.0f);
  const size_t first_y = c.arrays.size();
  for (size_t i = 0; i < parts.size(); ++i) {
    const LinearShape& p = parts[i];
    HostWeight weight = random_weight(WeightRole::kLinear, p.format, p.N, K, rng);
    const Cost cost = linear_cost(T, p.N, K, weight, p.y_dtype);
    c.cost.weight_bytes += cost.weight_bytes;
    c.cost.other_bytes += cost.other_bytes;
    c.cost.flops += cost.flops;
    add_weight(c, std::move(weight));
    add_array(c, "y" + std::to_string(i), p.y_dtype, {T, p.N}, Use::kOut);
  }
  c.sum_length = K;
  split_rows(c);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    LinearStackArgs a{.x = b.at<bf16>(x) + step.first * K,
                      .T = step.rows,
                      .K = K,
                      .norm = norm ? b.at<bf16>(norm_at) : nullptr,
                      .norm_eps = 1e-6f,
                      .n = static_cast<int32_t>(parts.size())};
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto stride = parts[i].N * static_cast<int64_t>(dtype_size(parts[i].y_dtype));
      a.w[i] = b.weight(i);
      a.y[i] = b.at<char>(first_y + i) + step.first * stride;
      a.y_dtype[i] = parts[i].y_dtype;
    }
    return ctx.ops.linear_stack(ctx, a);
  };
  return c;
}

OpCase grouped_linear_case(const GroupedShape& s, uint64_t seed) {
  OpCase c{.op = "grouped_linear"};
  Rng rng(seed);
  const GroupedArrays a = add_grouped(c, s, rng);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.grouped_linear(ctx, grouped_args(b, a, s, step));
  };
  return c;
}

}  // namespace dsv4::bench
