#include <cmath>

#include "bench/cases.h"

namespace dsv4::bench {
namespace {

constexpr float kNormEps = 1e-6f;

struct HcArrays {
  size_t streams, fn, base, scale, x, post, comb;
};

HcArrays add_hc_pre(OpCase& c, const HcShape& s, Rng& rng) {
  const int64_t mix = (2 + s.hc) * s.hc, n = s.hc * s.D;
  HcArrays a{};
  a.streams = add_normal(c, rng, "streams", DType::kBF16, {s.T, s.hc, s.D}, 1.0f);
  a.fn = add_normal(c, rng, "fn", DType::kF32, {mix, n}, 1.0f / std::sqrt(static_cast<float>(n)));
  a.base = add_normal(c, rng, "base", DType::kF32, {mix}, 0.5f);
  a.scale = add_normal(c, rng, "scale", DType::kF32, {3}, 0.2f, Use::kIn, 1.0f);
  a.x = add_array(c, "x", DType::kBF16, {s.T, s.D}, Use::kOut);
  a.post = add_array(c, "post", DType::kF32, {s.T, s.hc}, Use::kOut);
  a.comb = add_array(c, "comb", DType::kF32, {s.T, s.hc, s.hc}, Use::kOut);
  c.rows = s.T;
  c.sum_length = n;
  c.cost = {.weight_bytes = mix * n * 4,
            .other_bytes = s.T * (2 * n + 2 * s.D),
            .flops = s.T * n * (2 * mix + 4)};
  split_rows(c);
  return a;
}

HcPreArgs hc_pre_args(const Bound& b, const HcArrays& a, const HcShape& s, const Step& step) {
  return {.streams = b.at<bf16>(a.streams) + step.first * s.hc * s.D,
          .mhc = {.fn = b.at<float>(a.fn),
                  .base = b.at<float>(a.base),
                  .scale = b.at<float>(a.scale),
                  .sinkhorn_iters = s.iters,
                  .hc_eps = s.hc_eps},
          .norm_eps = kNormEps,
          .x = b.at<bf16>(a.x) + step.first * s.D,
          .post = b.at<float>(a.post) + step.first * s.hc,
          .comb = b.at<float>(a.comb) + step.first * s.hc * s.hc,
          .T = step.rows,
          .hc = s.hc,
          .D = s.D};
}

}  // namespace

OpCase embed_case(int64_t T, int64_t hc, int64_t D, int64_t V, uint64_t seed) {
  OpCase c{.op = "embed", .rows = T};
  Rng rng(seed);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < T; ++t)
    ids.push_back(static_cast<int32_t>(t == 0 ? V - 1 : rng.below(V)));
  const size_t tokens = add_ints(c, "tokens", {T}, ids);
  const size_t table =
      add_weight(c, random_weight(WeightRole::kEmbed, WeightFormat::kBf16, V, D, rng));
  const size_t streams = add_array(c, "streams", DType::kBF16, {T, hc, D}, Use::kOut);
  c.cost = {.other_bytes = T * D * 2 * (1 + hc)};
  split_rows(c);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.embed(ctx, {.tokens = b.at<int32_t>(tokens) + step.first,
                               .table = b.weight(table),
                               .streams = b.at<bf16>(streams) + step.first * hc * D,
                               .T = step.rows,
                               .hc = hc,
                               .D = D});
  };
  return c;
}

OpCase hc_pre_case(const HcShape& s, uint64_t seed) {
  OpCase c{.op = "hc_pre"};
  Rng rng(seed);
  const HcArrays a = add_hc_pre(c, s, rng);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.hc_pre(ctx, hc_pre_args(b, a, s, step));
  };
  return c;
}

OpCase hc_pre_norm_case(const HcShape& s, uint64_t seed) {
  OpCase c{.op = "hc_pre_norm"};
  Rng rng(seed);
  const HcArrays a = add_hc_pre(c, s, rng);
  const size_t norm = add_normal(c, rng, "norm", DType::kBF16, {s.D}, 0.2f, Use::kIn, 1.0f);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.hc_pre_norm(ctx, {.pre = hc_pre_args(b, a, s, step), .norm = b.at<bf16>(norm)});
  };
  return c;
}

OpCase hc_post_case(const HcShape& s, uint64_t seed) {
  OpCase c{.op = "hc_post", .rows = s.T};
  Rng rng(seed);
  const size_t streams =
      add_normal(c, rng, "streams", DType::kBF16, {s.T, s.hc, s.D}, 1.0f, Use::kInOut);
  const size_t out = add_normal(c, rng, "out", DType::kBF16, {s.T, s.D}, 1.0f);
  const size_t post = add_normal(c, rng, "post", DType::kF32, {s.T, s.hc}, 0.3f, Use::kIn, 1.0f);
  const size_t comb =
      add_normal(c, rng, "comb", DType::kF32, {s.T, s.hc, s.hc}, 0.1f, Use::kIn, 0.25f);
  c.sum_length = s.hc + 1;
  c.cost = {.other_bytes = s.T * s.D * (4 * s.hc + 2), .flops = s.T * s.D * s.hc * 2 * (s.hc + 1)};
  split_rows(c);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.hc_post(ctx, {.streams = b.at<bf16>(streams) + step.first * s.hc * s.D,
                                 .out = b.at<bf16>(out) + step.first * s.D,
                                 .post = b.at<float>(post) + step.first * s.hc,
                                 .comb = b.at<float>(comb) + step.first * s.hc * s.hc,
                                 .T = step.rows,
                                 .hc = s.hc,
                                 .D = s.D});
  };
  return c;
}

OpCase hc_post_pre_norm_case(const HcShape& s, uint64_t seed) {
  OpCase c{.op = "hc_post_pre_norm"};
  Rng rng(seed);
  const HcArrays a = add_hc_pre(c, s, rng);
  // One place for the post and comb of both sites, and for the streams before and after.
  for (const size_t i : {a.streams, a.post, a.comb}) c.arrays[i].use = Use::kInOut;
  const auto fill = [&](size_t i, float spread, float mean) {
    HostArray& array = c.arrays[i];
    array.bytes.resize(array.byte_count());
    for (int64_t at = 0; at < array.shape.elements(); ++at)
      array.as<float>()[at] = mean + spread * rng.normal();
  };
  fill(a.post, 0.3f, 1.0f);
  fill(a.comb, 0.1f, 0.25f);
  const size_t out = add_normal(c, rng, "out", DType::kBF16, {s.T, s.D}, 1.0f);
  const size_t norm = add_normal(c, rng, "norm", DType::kBF16, {s.D}, 0.2f, Use::kIn, 1.0f);
  c.cost.other_bytes += s.T * s.D * (2 * s.hc + 2);
  c.cost.flops += s.T * s.D * s.hc * 2 * (s.hc + 1);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    const HcPreArgs pre = hc_pre_args(b, a, s, step);
    return ctx.ops.hc_post_pre_norm(
        ctx, {.post = {.streams = b.at<bf16>(a.streams) + step.first * s.hc * s.D,
                       .out = b.at<bf16>(out) + step.first * s.D,
                       .post = pre.post,
                       .comb = pre.comb,
                       .T = step.rows,
                       .hc = s.hc,
                       .D = s.D},
              .next = {.pre = pre, .norm = b.at<bf16>(norm)}});
  };
  return c;
}

OpCase hc_head_case(const HcShape& s, int64_t R, uint64_t seed) {
  OpCase c{.op = "hc_head", .rows = R};
  Rng rng(seed);
  const int64_t n = s.hc * s.D;
  std::vector<int32_t> picked;
  for (int64_t r = 0; r < R; ++r)
    picked.push_back(static_cast<int32_t>(r == 0 ? s.T - 1 : rng.below(s.T)));
  const size_t streams = add_normal(c, rng, "streams", DType::kBF16, {s.T, s.hc, s.D}, 1.0f);
  const size_t rows = add_ints(c, "rows", {R}, picked);
  const size_t fn =
      add_normal(c, rng, "fn", DType::kF32, {s.hc, n}, 1.0f / std::sqrt(static_cast<float>(n)));
  const size_t base = add_normal(c, rng, "base", DType::kF32, {s.hc}, 0.5f);
  const size_t scale = add_normal(c, rng, "scale", DType::kF32, {1}, 0.2f, Use::kIn, 1.0f);
  const size_t norm = add_normal(c, rng, "norm", DType::kBF16, {s.D}, 0.2f, Use::kIn, 1.0f);
  const size_t x = add_array(c, "x", DType::kBF16, {R, s.D}, Use::kOut);
  c.sum_length = n;
  c.cost = {.weight_bytes = s.hc * n * 4,
            .other_bytes = R * (2 * n + 2 * s.D),
            .flops = R * n * (2 * s.hc + 4)};
  split_rows(c);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.hc_head(ctx, {.streams = b.at<bf16>(streams),
                                 .rows = b.at<int32_t>(rows) + step.first,
                                 .fn = b.at<float>(fn),
                                 .base = b.at<float>(base),
                                 .scale = b.at<float>(scale),
                                 .norm = b.at<bf16>(norm),
                                 .hc_eps = s.hc_eps,
                                 .norm_eps = kNormEps,
                                 .x = b.at<bf16>(x) + step.first * s.D,
                                 .R = step.rows,
                                 .hc = s.hc,
                                 .D = s.D});
  };
  return c;
}

OpCase stream_add_case(const HcShape& s, uint64_t seed) {
  OpCase c{.op = "stream_add", .rows = s.T};
  Rng rng(seed);
  const size_t e = add_normal(c, rng, "e", DType::kBF16, {s.T, s.D}, 1.0f);
  const size_t h = add_normal(c, rng, "h", DType::kBF16, {s.T, s.hc, s.D}, 1.0f);
  const size_t streams = add_array(c, "streams", DType::kBF16, {s.T, s.hc, s.D}, Use::kOut);
  c.cost = {.other_bytes = s.T * s.D * (2 + 4 * s.hc), .flops = s.T * s.D * s.hc};
  split_rows(c);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.stream_add(ctx, {.e = b.at<bf16>(e) + step.first * s.D,
                                    .h = b.at<bf16>(h) + step.first * s.hc * s.D,
                                    .streams = b.at<bf16>(streams) + step.first * s.hc * s.D,
                                    .T = step.rows,
                                    .hc = s.hc,
                                    .D = s.D});
  };
  return c;
}

}  // namespace dsv4::bench
