// The tracing table: same results, own times, and the bytes that a call had to read.
#include "ops/trace.h"

#include <gtest/gtest.h>

#include "backends/reference/reference_backend.h"
#include "bench/cases.h"

namespace dsv4 {
namespace {

class Trace : public testing::Test {
 protected:
  void SetUp() override { stream_ = std::move(backend_->make_stream()).value(); }

  std::vector<bench::HostArray> run(const bench::OpCase& c, const OpTable& table) {
    auto bound = std::move(bench::Bound::make(c, *backend_, *stream_)).value();
    OpContext ctx{*backend_, table, *stream_, workspace_};
    const Status status = c.call(ctx, *bound, c.whole);
    EXPECT_TRUE(status.ok()) << status.message();
    return std::move(bound->download()).value();
  }
  static const OpRecord& record(const TraceTable& trace, std::string_view op) {
    for (size_t i = 0; i < op_list().size(); ++i) {
      if (op_list()[i].name == op) return trace.records()[i];
    }
    return trace.records().front();
  }

  std::unique_ptr<Backend> backend_ = make_reference_backend();
  std::unique_ptr<Stream> stream_;
  Workspace workspace_{*backend_};
};

TEST_F(Trace, CountsOnlyWhileEnabledAndChangesNothing) {
  const TraceTable trace(backend_->ops());
  const bench::OpCase c =
      bench::linear_case({.T = 3, .N = 130, .K = 256}, bench::Values::kFinite, 1);
  const auto plain = run(c, backend_->ops());
  EXPECT_EQ(run(c, trace)[0].bytes, plain[0].bytes);
  EXPECT_EQ(record(trace, "linear").calls, 0);
  trace.enable(true);
  EXPECT_EQ(run(c, trace)[0].bytes, plain[0].bytes);
  const OpRecord& r = record(trace, "linear");
  EXPECT_EQ(r.calls, 1);
  EXPECT_GT(r.ns, 0);
  EXPECT_EQ(r.bytes, 130 * 256 + 2 * 2);  // codes, and the scales of 2 x 2 tiles
  EXPECT_EQ(r.flops, 2 * 3 * 130 * 256);
  trace.clear();
  EXPECT_EQ(record(trace, "linear").calls, 0);
}

// A fused default calls leaves through the same context: they are seen, and their bytes count once.
TEST_F(Trace, FusedEntriesDoNotCountTheirLeavesTwice) {
  const TraceTable trace(backend_->ops());
  trace.enable(true);
  const bench::LinearShape part{.T = 2, .N = 128, .K = 128};
  const bench::OpCase c = bench::linear_stack_case({part, part}, false, 1);
  run(c, trace);
  EXPECT_EQ(record(trace, "linear_stack").calls, 1);
  EXPECT_EQ(record(trace, "linear").calls, 2);
  EXPECT_EQ(record(trace, "linear_stack").bytes, 0);
  EXPECT_EQ(record(trace, "linear").bytes, c.cost.weight_bytes);
}

// Only the experts that some token goes to are read.
TEST_F(Trace, ExpertsCountOnceEach) {
  const TraceTable trace(backend_->ops());
  trace.enable(true);
  const bench::OpCase c = bench::moe_case(
      {.T = 9, .E = 5, .k = 1, .routing = bench::Routing::kOneExpert}, bench::Values::kFinite, 1);
  run(c, trace);
  EXPECT_EQ(record(trace, "moe").bytes, c.cost.weight_bytes);
  EXPECT_EQ(record(trace, "moe").flops, c.cost.flops);
}

TEST_F(Trace, AttentionCountsTheRowsItReads) {
  const TraceTable trace(backend_->ops());
  trace.enable(true);
  const bench::AttentionShape s{
      .sequences = {{500, 1}}, .H = 2, .d = 128, .window = 32, .ratio = 4, .topk = 16};
  run(bench::attention_case(s, 1), trace);
  EXPECT_EQ(record(trace, "attention").bytes, (31 + 16) * 128 * 2);
}

}  // namespace
}  // namespace dsv4
