// Negative controls: a tolerance that cannot fail is worth nothing. For every op a damaged result
// must be refused, and a damaged op table must fail where a sound one passes.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "bench/op_cases.h"
#include "compare.h"
#include "machine.h"

namespace dsv4::parity {
namespace {

using bench::CaseSpec;
using Outputs = std::vector<HostArray>;

struct Sample {
  OpCase c;
  Outputs out, magnitude;
  const Outputs* sums() const { return magnitude.empty() ? nullptr : &magnitude; }
};

// One case of every op, of several rows.
std::vector<Sample> sample(const Machine& m) {
  std::vector<Sample> runs;
  std::set<std::string> seen;
  for (const CaseSpec& spec : bench::parity_cases()) {
    if (seen.count(spec.op)) continue;
    OpCase c = spec.make();
    if (c.rows < 3 || spec.name.find("NaN") != std::string::npos) continue;
    seen.insert(spec.op);
    Sample run{.c = std::move(c), .out = {}, .magnitude = {}};
    run.out = std::move(m.run(run.c)).value();
    if (needs_magnitude(run.c)) run.magnitude = std::move(m.run(run.c.absolute())).value();
    runs.push_back(std::move(run));
  }
  return runs;
}

// Damages the largest element (by magnitude) of an output that the op changed.
bool scale_largest(const OpCase& c, HostArray& a, double factor) {
  const HostArray& before = array(c.arrays, a.name);
  int64_t best = -1;
  double top = 0.0;
  for (int64_t i = 0; i < a.shape.elements(); ++i) {
    const auto size = dtype_size(a.dtype);
    const auto at = static_cast<size_t>(i) * size;
    if (a.use == bench::Use::kInOut &&
        memcmp(before.bytes.data() + at, a.bytes.data() + at, size) == 0)
      continue;
    const double v = std::fabs(static_cast<double>(
        a.dtype == DType::kBF16 ? to_float(a.as<bf16>()[i]) : a.as<float>()[i]));
    if (v > top) {
      top = v;
      best = i;
    }
  }
  if (best < 0) return false;
  if (a.dtype == DType::kBF16)
    a.as<bf16>()[best] = to_bf16(to_float(a.as<bf16>()[best]) * static_cast<float>(factor));
  else
    a.as<float>()[best] *= static_cast<float>(factor);
  return true;
}

class Controls : public testing::Test {
 protected:
  void SetUp() override { machine_ = std::move(Machine::make("reference")).value(); }
  Machine machine_;
};

TEST_F(Controls, SoundResultsPass) {
  for (const Sample& run : sample(machine_))
    EXPECT_EQ(judge(run.c, run.out, run.out, run.sums()), "") << run.c.name;
}

// 3 % of one element: more than two BF16 steps. What quantises its result moves by a code or not at
// all, so those get a change of two codes.
TEST_F(Controls, OneWrongElementIsCaught) {
  size_t checked = 0;
  for (const Sample& run : sample(machine_)) {
    const bool quantised =
        run.c.op == "compress" || run.c.op == "index_select" || run.c.op == "qkv" || run.c.op == "attend";
    for (size_t i = 0; i < run.out.size(); ++i) {
      if (run.out[i].dtype == DType::kI32) continue;
      Outputs damaged = run.out;
      if (!scale_largest(run.c, damaged[i], quantised ? 2.5 : 1.03)) continue;
      EXPECT_NE(judge(run.c, run.out, damaged, run.sums()), "")
          << run.c.name << " " << run.out[i].name;
      ++checked;
    }
  }
  EXPECT_GE(checked, op_list().size());
}

TEST_F(Controls, AnUnwrittenRowIsCaught) {
  for (const Sample& run : sample(machine_)) {
    for (size_t i = 0; i < run.out.size(); ++i) {
      if (run.out[i].use != bench::Use::kOut) continue;
      Outputs damaged = run.out;
      const size_t row = damaged[i].bytes.size() / static_cast<size_t>(damaged[i].shape[0]);
      const int byte =
          damaged[i].dtype == DType::kI32 ? bench::kPoisonIndex & 0xff : bench::kPoison;
      memset(damaged[i].bytes.data() + damaged[i].bytes.size() - row, byte, row);
      EXPECT_NE(check_written(damaged), "") << run.c.name;
      EXPECT_NE(judge(run.c, run.out, damaged, run.sums()), "")
          << run.c.name << " " << run.out[i].name;
    }
  }
}

TEST_F(Controls, ARowInTheWrongPlaceIsCaught) {
  for (const Sample& run : sample(machine_)) {
    for (size_t i = 0; i < run.out.size(); ++i) {
      if (run.out[i].use != bench::Use::kOut) continue;
      Outputs damaged = run.out;
      std::vector<uint8_t>& b = damaged[i].bytes;
      const size_t row = b.size() / static_cast<size_t>(damaged[i].shape[0]);
      if (memcmp(b.data(), b.data() + row, row) == 0) continue;  // e.g. both rows see nothing yet
      std::swap_ranges(b.begin(), b.begin() + static_cast<std::ptrdiff_t>(row),
                       b.begin() + static_cast<std::ptrdiff_t>(row));
      EXPECT_NE(judge(run.c, run.out, damaged, run.sums()), "")
          << run.c.name << " " << run.out[i].name;
    }
  }
}

// Rounding towards zero instead of to nearest is never more than one step off; only the share of
// different elements gives it away.
TEST_F(Controls, TruncationIsCaught) {
  const OpCase c = [] {
    for (const CaseSpec& spec : bench::parity_cases()) {
      if (spec.op == "linear" && spec.name.find("T=33 N=192") != std::string::npos)
        return spec.make();
    }
    return OpCase{};
  }();
  ASSERT_EQ(c.rows, 33);
  const Outputs out = std::move(machine_.run(c)).value();
  const Outputs magnitude = std::move(machine_.run(c.absolute())).value();
  Outputs damaged = out;
  // Half of all roundings went up; taking a step back from every other element stands for that.
  for (int64_t i = 0; i < damaged[0].shape.elements(); i += 2) --damaged[0].as<bf16>()[i].bits;
  EXPECT_NE(judge(c, out, damaged, &magnitude), "");
}

// The whole way, through a table: a linear that is 1 % off in one element of FP32 output, and one
// that skips the rounding of its input.
Status bent_linear(OpContext& ctx, const LinearArgs& a) {
  DSV4_TRY(ctx.backend.ops().linear(ctx, a));
  if (a.y_dtype == DType::kF32) static_cast<float*>(a.y)[a.T * a.w.rows / 2] *= 1.01f;
  return {};
}

TEST_F(Controls, ADamagedTableIsCaught) {
  OpTable bent = machine_.backend->ops();
  bent.linear = {bent_linear, "bent"};
  size_t refused = 0, cases = 0;
  for (const CaseSpec& spec : bench::parity_cases()) {
    if (spec.op != "linear" || spec.name.find("F32") == std::string::npos ||
        spec.name.find("T=1 ") != std::string::npos)
      continue;
    const OpCase c = spec.make();
    const Outputs good = std::move(machine_.run(c)).value();
    const Outputs magnitude = std::move(machine_.run(c.absolute())).value();
    const Outputs bad = std::move(machine_.run(c, bent, {c.whole})).value();
    ++cases;
    if (!judge(c, good, bad, &magnitude).empty()) ++refused;
  }
  EXPECT_GT(cases, 8u);
  EXPECT_EQ(refused, cases);
}

}  // namespace
}  // namespace dsv4::parity
