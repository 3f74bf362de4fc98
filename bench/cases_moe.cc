#include <algorithm>
#include <set>

#include "bench/cases.h"

namespace dsv4::bench {
namespace {

// k different experts per token.
std::vector<int32_t> pick_experts(int64_t T, int64_t E, int64_t k, Routing routing, Rng& rng) {
  std::vector<int32_t> ids, all;
  for (int64_t e = 0; e < E; ++e) all.push_back(static_cast<int32_t>(e));
  for (int64_t t = 0; t < T; ++t) {
    if (t == 0 || routing == Routing::kRandom) {
      for (int64_t i = 0; i < k; ++i) {
        std::swap(all[static_cast<size_t>(i)], all[static_cast<size_t>(i + rng.below(E - i))]);
      }
    }
    ids.insert(ids.end(), all.begin(), all.begin() + k);
  }
  return ids;
}

}  // namespace

OpCase router_case(const RouterShape& s, uint64_t seed) {
  OpCase c{.op = "router", .rows = s.T};
  Rng rng(seed);
  constexpr int64_t kVocab = 97;
  const size_t x = add_normal(c, rng, "x", DType::kBF16, {s.T, s.D}, 1.0f);
  HostWeight weight = random_weight(WeightRole::kLinear, WeightFormat::kBf16, s.E, s.D, rng);
  c.cost = {.weight_bytes = weight.matrix_bytes(),
            .other_bytes = s.T * (2 * s.D + 8 * s.k),
            .flops = 2 * s.T * s.E * s.D};
  const size_t gate = add_weight(c, std::move(weight));
  const size_t bias = add_normal(c, rng, "bias", DType::kF32, {s.E}, 0.1f);
  const size_t table =
      add_ints(c, "tid2eid", {kVocab, s.k}, pick_experts(kVocab, s.E, s.k, Routing::kRandom, rng));
  std::vector<int32_t> tokens;
  for (int64_t t = 0; t < s.T; ++t) tokens.push_back(static_cast<int32_t>(rng.below(kVocab)));
  const size_t token = add_ints(c, "tokens", {s.T}, tokens);
  const size_t ids = add_array(c, "ids", DType::kI32, {s.T, s.k}, Use::kOut);
  const size_t weights = add_array(c, "weights", DType::kF32, {s.T, s.k}, Use::kOut);
  c.sum_length = s.D;
  split_rows(c);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.router(ctx, {.x = b.at<bf16>(x) + step.first * s.D,
                                .gate = b.weight(gate),
                                .bias = s.hash ? nullptr : b.at<float>(bias),
                                .tid2eid = s.hash ? b.at<int32_t>(table) : nullptr,
                                .tokens = b.at<int32_t>(token) + step.first,
                                .scaling = 1.5f,
                                .ids = b.at<int32_t>(ids) + step.first * s.k,
                                .weights = b.at<float>(weights) + step.first * s.k,
                                .T = step.rows,
                                .E = s.E,
                                .D = s.D,
                                .k = s.k});
  };
  return c;
}

OpCase moe_case(const MoeShape& s, Values values, uint64_t seed) {
  OpCase c{.op = "moe", .rows = s.T};
  Rng rng(seed);
  const size_t x = add_normal(c, rng, "x", DType::kBF16, {s.T, s.D}, 1.0f);
  if (values == Values::kWithNan && s.T > 1) c.arrays[x].as<bf16>()[s.D + 3] = bf16{0x7fc0};
  const std::vector<int32_t> picked = pick_experts(s.T, s.E, s.k, s.routing, rng);
  const size_t ids = add_ints(c, "ids", {s.T, s.k}, picked);
  const size_t weights =
      add_normal(c, rng, "weights", DType::kF32, {s.T, s.k}, 0.05f, Use::kIn, 0.25f);
  const int64_t distinct = s.distinct ? s.distinct : s.E;
  const auto expert = [&](int64_t rows, int64_t cols) {
    return add_weight(
        c, random_weight(WeightRole::kExperts, s.format, rows, cols, rng, s.E, distinct));
  };
  const auto shared = [&](int64_t rows, int64_t cols) {
    return add_weight(
        c, random_weight(WeightRole::kLinear, WeightFormat::kFp8Tile128, rows, cols, rng));
  };
  const size_t w1 = expert(s.I, s.D), w3 = expert(s.I, s.D), w2 = expert(s.D, s.I);
  const size_t s1 = shared(s.I, s.D), s3 = shared(s.I, s.D), s2 = shared(s.D, s.I);
  const size_t y = add_array(c, "y", DType::kBF16, {s.T, s.D}, Use::kOut);
  const auto touched = static_cast<int64_t>(std::set<int32_t>(picked.begin(), picked.end()).size());
  const auto bytes = [&](size_t w) { return c.weights[w].matrix_bytes(); };
  c.sum_length = s.D;
  c.cost = {.weight_bytes = s.T == 0 ? 0
                                     : touched * (bytes(w1) + bytes(w3) + bytes(w2)) + bytes(s1) +
                                           bytes(s3) + bytes(s2),
            .other_bytes = s.T * (4 * s.D + 8 * s.k),
            .flops = s.T * (s.k + 1) * 6 * s.D * s.I};
  split_rows(c);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.moe(ctx, {.x = b.at<bf16>(x) + step.first * s.D,
                             .ids = b.at<int32_t>(ids) + step.first * s.k,
                             .weights = b.at<float>(weights) + step.first * s.k,
                             .w1 = b.weight(w1),
                             .w3 = b.weight(w3),
                             .w2 = b.weight(w2),
                             .shared_w1 = b.weight(s1),
                             .shared_w3 = b.weight(s3),
                             .shared_w2 = b.weight(s2),
                             .limit = s.limit,
                             .y = b.at<bf16>(y) + step.first * s.D,
                             .T = step.rows,
                             .D = s.D,
                             .I = s.I,
                             .E = s.E,
                             .k = s.k,
                             .shared_I = s.I});
  };
  return c;
}

}  // namespace dsv4::bench
