// The tracing table: same results, each op's own time, and the bytes that a call had to read.
#include "ops/trace.h"

#include <gtest/gtest.h>

#include "backends/reference/reference_backend.h"
#include "bench/cases.h"
#include "unit/engine/recording_backend.h"

namespace dsv4 {
namespace {

class Trace : public ::testing::Test {
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

TEST_F(Trace, CountsOnlyWhatItWatchesAndChangesNothing) {
  const TraceTable trace(backend_->ops());
  const bench::OpCase c =
      bench::linear_case({.T = 3, .N = 130, .K = 256}, bench::Values::kFinite, 1);
  const auto plain = run(c, backend_->ops());
  EXPECT_EQ(run(c, trace)[0].bytes, plain[0].bytes);
  EXPECT_EQ(record(trace, "linear").calls, 0);
  trace.watch_work();
  EXPECT_EQ(run(c, trace)[0].bytes, plain[0].bytes);
  ASSERT_TRUE(trace.finish_run().ok());
  const OpRecord& r = record(trace, "linear");
  EXPECT_EQ(r.calls, 1);
  EXPECT_EQ(r.ns, 0);
  EXPECT_EQ(r.bytes, 130 * 256 + 2 * 2);  // codes, and the scales of 2 x 2 tiles
  EXPECT_EQ(r.flops, 2 * 3 * 130 * 256);
  trace.clear();
  EXPECT_EQ(record(trace, "linear").calls, 0);
  ASSERT_TRUE(trace.watch_time(*backend_).ok());
  EXPECT_EQ(run(c, trace)[0].bytes, plain[0].bytes);
  ASSERT_TRUE(trace.finish_run().ok());
  EXPECT_EQ(r.calls, 1);
  EXPECT_GT(r.ns, 0);
  EXPECT_EQ(r.bytes, 0);
}

// A fused default calls leaves through the same context: they are seen, and their bytes count once.
TEST_F(Trace, FusedEntriesDoNotCountTheirLeavesTwice) {
  const TraceTable trace(backend_->ops());
  trace.watch_work();
  const bench::LinearShape part{.T = 2, .N = 128, .K = 128};
  const bench::OpCase c = bench::linear_stack_case({part, part}, false, 1);
  run(c, trace);
  EXPECT_EQ(record(trace, "linear_stack").calls, 1);
  EXPECT_EQ(record(trace, "linear").calls, 2);
  EXPECT_EQ(record(trace, "linear_stack").bytes, 0);
  EXPECT_EQ(record(trace, "linear").bytes, c.cost.weight_bytes);
}

// Between a mark and the next one 1000 ns pass, between the runs no time.
class TickingBackend : public testing::RecordingBackend {
 public:
  using RecordingBackend::RecordingBackend;

  Result<std::unique_ptr<Marks>> make_marks(int64_t n) override {
    return std::unique_ptr<Marks>(std::make_unique<Ticks>(n));
  }

 private:
  struct Ticks : Marks {
    explicit Ticks(int64_t n) : at(static_cast<size_t>(n)) {}
    Status mark(Stream&, int64_t i) override {
      at.at(static_cast<size_t>(i)) = ++now;
      return {};
    }
    Result<int64_t> nanoseconds(int64_t from, int64_t to) const override {
      return 1000 * (at.at(static_cast<size_t>(to)) - at.at(static_cast<size_t>(from)));
    }
    std::vector<int64_t> at;
    int64_t now = 0;
  };
};

TEST_F(Trace, TimesAreWithoutThoseOfTheOpsInside) {
  TickingBackend backend(*backend_);
  const TraceTable trace(backend.ops());
  const bench::LinearShape part{.T = 2, .N = 128, .K = 128};
  const bench::OpCase one = bench::linear_case(part, bench::Values::kFinite, 1);
  const bench::OpCase stack = bench::linear_stack_case({part, part}, false, 1);
  const auto bound_one = std::move(bench::Bound::make(one, backend, *stream_)).value();
  const auto bound_stack = std::move(bench::Bound::make(stack, backend, *stream_)).value();
  OpContext ctx{backend, trace, *stream_, workspace_};
  const auto body = [&]() -> Status {
    DSV4_TRY(one.call(ctx, *bound_one, one.whole));
    DSV4_TRY(stack.call(ctx, *bound_stack, stack.whole));
    return one.call(ctx, *bound_one, one.whole);
  };
  const auto run_is = [&](int64_t runs) {
    ASSERT_TRUE(trace.finish_run().ok());
    EXPECT_EQ(record(trace, "linear").calls, 4 * runs);
    EXPECT_EQ(record(trace, "linear_stack").calls, runs);
    // Marks lie before the first op, around both inside the second, and behind every op. Those inside are
    // 1000 each, and what is left of theirs is before, between and behind them.
    EXPECT_EQ(record(trace, "linear").ns, 4 * 1000 * runs);
    EXPECT_EQ(record(trace, "linear_stack").ns, 3 * 1000 * runs);
  };
  trace.watch_work();
  ASSERT_TRUE(body().ok());
  ASSERT_TRUE(trace.finish_run().ok());
  trace.clear();
  ASSERT_TRUE(trace.watch_time(backend).ok());
  ASSERT_TRUE(body().ok());
  run_is(1);
  const auto graph = backend.record(*stream_, body);
  ASSERT_TRUE(graph.ok());
  ASSERT_TRUE(backend.launch(*stream_, **graph).ok());
  run_is(2);
  // A device passes the marks of a replay without the host's calling an op.
  run_is(3);
}

TEST_F(Trace, ARunLongerThanWhatWasWatchedIsRefused) {
  const TraceTable trace(backend_->ops());
  const bench::OpCase c = bench::linear_case({.T = 1, .N = 16, .K = 128}, bench::Values::kFinite, 1);
  const auto bound = std::move(bench::Bound::make(c, *backend_, *stream_)).value();
  OpContext ctx{*backend_, trace, *stream_, workspace_};
  const auto call = [&] { return c.call(ctx, *bound, c.whole); };
  trace.watch_work();
  ASSERT_TRUE(call().ok());
  ASSERT_TRUE(trace.finish_run().ok());
  ASSERT_TRUE(trace.watch_time(*backend_).ok());
  ASSERT_TRUE(call().ok());
  const Status second = call();
  EXPECT_FALSE(second.ok());
  EXPECT_NE(second.message().find("more than 1 calls"), std::string::npos) << second.message();
}

// Only the experts that some token goes to are read.
TEST_F(Trace, ExpertsCountOnceEach) {
  const TraceTable trace(backend_->ops());
  trace.watch_work();
  const bench::OpCase c = bench::moe_case(
      {.T = 9, .E = 5, .k = 1, .routing = bench::Routing::kOneExpert}, bench::Values::kFinite, 1);
  run(c, trace);
  EXPECT_EQ(record(trace, "moe").bytes, c.cost.weight_bytes);
  EXPECT_EQ(record(trace, "moe").flops, c.cost.flops);
}

TEST_F(Trace, AttentionCountsTheRowsItReads) {
  const TraceTable trace(backend_->ops());
  trace.watch_work();
  const bench::AttentionShape s{
      .sequences = {{500, 1}}, .H = 2, .d = 128, .window = 32, .ratio = 4, .topk = 16};
  run(bench::attention_case(s, 1), trace);
  EXPECT_EQ(record(trace, "attention").bytes, (31 + 16) * 128 * 2);
}

}  // namespace
}  // namespace dsv4
