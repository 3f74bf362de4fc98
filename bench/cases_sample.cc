#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "bench/cases.h"

namespace dsv4::bench {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

void fill_row(float* row, int64_t V, Logits kind, Rng& rng) {
  for (int64_t i = 0; i < V; ++i) row[i] = 3.0f * rng.normal();
  switch (kind) {
    case Logits::kNormal: break;
    case Logits::kEqual: std::fill_n(row, V, 2.5f); break;
    case Logits::kTies:
      for (int64_t i = 0; i < V; ++i) row[i] = std::round(row[i]);
      break;
    case Logits::kMasked:
      for (int64_t i = 0; i < V; ++i) {
        if (i % 3 != 1) row[i] = -kInf;
      }
      break;
    // Far more of the range of a float than can be drawn, both zeros among it.
    case Logits::kWide:
      for (int64_t i = 0; i < V; ++i) row[i] = i % 5 == 0 ? -0.0f : i % 5 == 1 ? 0.0f : row[i] * row[i] * row[i] * 10;
      break;
    case Logits::kUnsound: row[rng.below(V)] = rng.below(2) ? kInf : std::nanf(""); break;
    case Logits::kNothing: std::fill_n(row, V, -kInf); break;
  }
}

}  // namespace

OpCase sample_case(const SampleShape& s, const std::vector<SampleRow>& rows, uint64_t seed) {
  const auto R = static_cast<int64_t>(rows.size());
  OpCase c{.op = "sample", .rows = R};
  Rng rng(seed);
  const size_t logits = add_array(c, "logits", DType::kF32, {R, s.V}, Use::kIn);
  HostArray& values = c.arrays[logits];
  values.bytes.resize(values.byte_count());
  for (int64_t r = 0; r < R; ++r) fill_row(values.as<float>() + r * s.V, s.V, s.logits, rng);
  const int64_t ints = sizeof(SampleRow) / sizeof(int32_t);
  const size_t how = add_array(c, "rows", DType::kI32, {R, ints}, Use::kIn);
  c.arrays[how].bytes.resize(c.arrays[how].byte_count());
  std::memcpy(c.arrays[how].bytes.data(), rows.data(), c.arrays[how].bytes.size());
  const size_t tokens = add_array(c, "tokens", DType::kI32, {R}, Use::kOut);
  c.cost = {.other_bytes = R * s.V * 4};
  split_rows(c);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.sample(ctx, {.logits = b.at<float>(logits) + step.first * s.V,
                                .rows = b.at<SampleRow>(how) + step.first,
                                .tokens = b.at<int32_t>(tokens) + step.first,
                                .R = step.rows,
                                .V = s.V});
  };
  return c;
}

}  // namespace dsv4::bench
