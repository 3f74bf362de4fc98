// Every op, every case, every backend: against reference, and against itself in other batches.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>

#include "bench/cases.h"
#include "bench/op_cases.h"
#include "compare.h"
#include "machine.h"

namespace dsv4::parity {
namespace {

using bench::CaseSpec;
using bench::Step;
using Outputs = std::vector<HostArray>;

// With DSV4_TEST_LARGE=1 also those for very many rows.
std::vector<CaseSpec> cases() {
  std::vector<CaseSpec> all = bench::parity_cases();
  const char* large = std::getenv("DSV4_TEST_LARGE");
  if (large && *large == '1') {
    for (CaseSpec& spec : bench::large_cases()) all.push_back(std::move(spec));
  }
  return all;
}

class Parity : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto machine = Machine::make(GetParam());
    auto reference = Machine::make("reference");
    ASSERT_TRUE(machine.ok()) << machine.status().message();
    ASSERT_TRUE(reference.ok()) << reference.status().message();
    machine_ = std::move(machine).value();
    reference_ = std::move(reference).value();
    RecordProperty("backend", machine_.backend->describe());
  }

  static bool same(const Outputs& a, const Outputs& b, std::string& where) {
    for (size_t i = 0; i < a.size(); ++i) {
      if (a[i].bytes == b[i].bytes) continue;
      size_t at = 0;
      while (a[i].bytes[at] == b[i].bytes[at]) ++at;
      where = a[i].name + " element " + std::to_string(at / dtype_size(a[i].dtype)) + " of " +
              to_string(a[i].shape);
      return false;
    }
    return true;
  }

  Machine machine_, reference_;
};

Sums sums_of(std::string_view backend) { return backend == "cuda" ? Sums::kTensorCores : Sums::kFp32; }

TEST_P(Parity, AgreesWithReference) {
  for (const CaseSpec& spec : cases()) {
    SCOPED_TRACE(spec.name);
    const OpCase c = spec.make();
    auto expected = reference_.run(c);
    ASSERT_TRUE(expected.ok()) << expected.status().message();
    auto found = machine_.run(c);
    ASSERT_TRUE(found.ok()) << found.status().message();
    Outputs magnitude;
    if (needs_magnitude(c)) {
      auto sums = reference_.run(c.absolute());
      ASSERT_TRUE(sums.ok()) << sums.status().message();
      magnitude = std::move(sums).value();
    }
    EXPECT_EQ(judge(c, *expected, *found, magnitude.empty() ? nullptr : &magnitude, sums_of(GetParam())), "");
    if (spec.name.find("NaN") == std::string::npos) {
      EXPECT_EQ(check_written(*found), "");
    }
  }
}

// A row's result does not depend on the rows around it: rows one by one, sequences one by one. What
// runs twice gives the same twice.
TEST_P(Parity, RowsAreIndependent) {
  for (const CaseSpec& spec : cases()) {
    SCOPED_TRACE(spec.name);
    const OpCase c = spec.make();
    auto bound = bench::Bound::make(c, *machine_.backend, *machine_.stream);
    ASSERT_TRUE(bound.ok()) << bound.status().message();
    const OpTable& ops = machine_.backend->ops();
    auto together = machine_.run(**bound, ops, {c.whole});
    auto apart = machine_.run(**bound, ops, c.split);
    auto again = machine_.run(**bound, ops, {c.whole});
    ASSERT_TRUE(together.ok() && apart.ok() && again.ok());
    std::string where;
    EXPECT_TRUE(same(*together, *apart, where)) << "one by one differs from the batch: " << where;
    EXPECT_TRUE(same(*together, *again, where)) << "a second run differs: " << where;
  }
}

// Every fifth row of the cache is 2^20 times what it was, past the scales that one BF16 factor can hold.
OpCase with_large_rows(OpCase c) {
  for (HostArray& a : c.arrays) {
    if (!a.kv_rows) continue;
    const int64_t d = a.shape[a.shape.rank - 1];
    for (int64_t i = 0; i < a.shape.elements(); ++i) {
      if (i / d % 5 == 1) a.as<bf16>()[i] = to_bf16(to_float(a.as<bf16>()[i]) * 0x1p20f);
    }
  }
  return c;
}

// Rows of the cache hold the same values in either format, so every result has the same bits; also row by row.
TEST_P(Parity, TheFormatOfCacheRowsDoesNotShow) {
  const OpTable& ops = machine_.backend->ops();
  std::vector<OpCase> with_rows;
  for (const CaseSpec& spec : cases()) {
    OpCase c = spec.make();
    if (std::none_of(c.arrays.begin(), c.arrays.end(), [](const HostArray& a) { return a.kv_rows; })) continue;
    c.name = spec.name;
    if (c.op == "attention") {
      with_rows.push_back(with_large_rows(c));
      with_rows.back().name += ", large";
    }
    with_rows.push_back(std::move(c));
  }
  EXPECT_GT(with_rows.size(), 40u);
  for (const OpCase& c : with_rows) {
    SCOPED_TRACE(c.name);
    machine_.backend->choose_kv_format(KvFormat::kBf16);
    auto expected = machine_.run(c);
    machine_.backend->choose_kv_format(KvFormat::kFp8Rope);
    auto bound = bench::Bound::make(c, *machine_.backend, *machine_.stream);
    ASSERT_TRUE(expected.ok() && bound.ok());
    auto whole = machine_.run(**bound, ops, {c.whole});
    ASSERT_TRUE(whole.ok()) << whole.status().message();
    auto apart = machine_.run(**bound, ops, c.split);
    ASSERT_TRUE(apart.ok()) << apart.status().message();
    std::string where;
    EXPECT_TRUE(same(*expected, *whole, where)) << "fp8 differs: " << where;
    EXPECT_TRUE(same(*expected, *apart, where)) << "fp8, one by one, differs: " << where;
  }
}

// A fused entry is its leaves: the backend's own, composed by the defaults.
TEST_P(Parity, FusedEntriesAreTheirLeaves) {
  OpTable leaves = machine_.backend->ops();
  fill_fallbacks(leaves);
  std::set<std::string> fused;
  for (const OpInfo& info : op_list()) {
    if (info.fused) fused.emplace(info.name);
  }
  for (const CaseSpec& spec : cases()) {
    if (!fused.count(spec.op)) continue;
    SCOPED_TRACE(spec.name);
    const OpCase c = spec.make();
    auto composed = machine_.run(c, leaves, {c.whole});
    auto found = machine_.run(c);
    ASSERT_TRUE(composed.ok() && found.ok());
    Outputs magnitude;
    if (needs_magnitude(c)) magnitude = std::move(reference_.run(c.absolute())).value();
    EXPECT_EQ(judge(c, *composed, *found, magnitude.empty() ? nullptr : &magnitude, sums_of(GetParam())), "");
  }
}

// The keys of row t in two halves, the older one by a query that stands where it ends: joined as AttentionPartsArgs says, they are
// the row's attention over all of them.
TEST_P(Parity, PartsOfAttentionJoin) {
  constexpr int64_t kRows = 150, kHalf = 64;
  const bench::AttentionShape shape{.sequences = {{0, kRows}}, .H = 3, .window = 2 * kHalf};
  const int64_t of_row = shape.H * shape.d;
  bench::AttentionShape half = shape;
  half.window = kHalf;
  const OpCase whole = bench::attention_case(shape, 5), newer = bench::attention_parts_case(half, 5);
  OpCase older = bench::attention_parts_case(half, 5);
  const auto named = [](auto& c, const char* name) {
    return std::find_if(c.arrays.begin(), c.arrays.end(), [&](const HostArray& a) { return a.name == name; });
  };
  bf16* const q = named(older, "q")->as<bf16>();
  std::copy(q + kHalf * of_row, q + kRows * of_row, q);
  auto expected = machine_.run(whole), of_newer = machine_.run(newer), of_older = machine_.run(older);
  ASSERT_TRUE(expected.ok() && of_newer.ok() && of_older.ok());
  const HostArray& o = array(*expected, "o");
  const float* const sink = named(whole, "sink")->as<float>();
  const auto part = [&](const Outputs& of, const char* name, int64_t i) { return static_cast<double>(array(of, name).as<float>()[i]); };
  for (int64_t t = kHalf; t < kRows; ++t) {
    for (int64_t h = 0; h < shape.H; ++h) {
      const int64_t at[2] = {t * shape.H + h, (t - kHalf) * shape.H + h};
      const double tops[2] = {part(*of_newer, "top", at[0]), part(*of_older, "top", at[1])}, m = std::max(tops[0], tops[1]);
      const double all = std::exp(static_cast<double>(sink[h]) - m) + std::exp(part(*of_newer, "lse", at[0]) - m) +
                         std::exp(part(*of_older, "lse", at[1]) - m);
      double most = 0.0;
      for (int64_t i = 0; i < shape.d; ++i) most = std::max(most, std::fabs(static_cast<double>(to_float(o.as<bf16>()[at[0] * shape.d + i]))));
      for (int64_t i = 0; i < shape.d; ++i) {
        const double joined = (std::exp(tops[0] - m) * part(*of_newer, "sums", at[0] * shape.d + i) +
                               std::exp(tops[1] - m) * part(*of_older, "sums", at[1] * shape.d + i)) / all;
        // Weights are BF16 relative to other maxima, o is BF16: as the rule for attention.
        ASSERT_NEAR(joined, static_cast<double>(to_float(o.as<bf16>()[at[0] * shape.d + i])), most * 0x1p-7) << "row " << t << " head " << h;
      }
    }
  }
}

TEST_P(Parity, UnpackGivesThePublishedBytes) {
  struct Shape2 {
    int64_t rows, cols, groups, count;
  };
  const std::pair<WeightRole, Shape2> roles[] = {
      {WeightRole::kLinear, {192, 384, 1, 1}},  {WeightRole::kLinear, {67, 128, 1, 1}},
      {WeightRole::kLinear, {1, 4096, 1, 1}},   {WeightRole::kGrouped, {192, 320, 3, 1}},
      {WeightRole::kExperts, {128, 256, 1, 5}}, {WeightRole::kExperts, {72, 128, 1, 3}}};
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8Tile128,
                                    WeightFormat::kMxfp4, WeightFormat::kNvfp4}) {
    for (const auto& [role, s] : roles) {
      bench::Rng rng(7);
      bench::HostWeight w =
          bench::random_weight(role, format, s.rows, s.cols, rng, s.count, s.count);
      w.groups = s.groups;
      SCOPED_TRACE(std::string(format_info(format).name) + " " + std::to_string(s.rows) + " x " +
                   std::to_string(s.cols));
      auto packed = machine_.backend->pack(w.request());
      ASSERT_TRUE(packed.ok()) << packed.status().message();
      EXPECT_EQ(packed->bytes(), machine_.backend->packed_bytes(w.request()));
      for (int64_t i = 0; i < s.count; ++i) {
        const bench::HostMatrix& m = *w.matrices[static_cast<size_t>(i)];
        std::vector<uint8_t> elements(m.elements.size()), scales(m.scales.size());
        const Status status = machine_.backend->unpack(*packed, i, elements.data(), scales.data());
        ASSERT_TRUE(status.ok()) << status.message();
        EXPECT_TRUE(elements == m.elements) << "elements of matrix " << i;
        EXPECT_TRUE(scales == m.scales) << "scales of matrix " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Parity, testing::ValuesIn(backends_under_test()),
                         [](const auto& param) { return param.param; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Parity);

TEST(Coverage, EveryOpHasCasesAndEveryOutputHasARule) {
  std::map<std::string, OpCase> first;
  for (const CaseSpec& spec : bench::parity_cases()) {
    if (!first.count(spec.op)) first.emplace(spec.op, spec.make());
  }
  for (const OpInfo& info : op_list()) {
    const auto found = first.find(std::string(info.name));
    ASSERT_NE(found, first.end())
        << info.name
        << " has no parity case; add a builder to bench/ and a line to parity_cases.cc";
    for (const HostArray& a : found->second.arrays) {
      if (a.use == bench::Use::kIn || a.dtype == DType::kI32 ||
          (info.name == "router" && a.name == "weights"))
        continue;
      EXPECT_FALSE(rules_for(info.name, a.name).empty()) << info.name << "." << a.name;
    }
  }
}

}  // namespace
}  // namespace dsv4::parity
