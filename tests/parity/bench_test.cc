// The benchmark itself: synthetic models run, bytes and flops are what the shapes say, and a timing
// of a case exists for every op.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "bench/cases.h"
#include "bench/model_bench.h"
#include "bench/op_cases.h"
#include "bench/ops_bench.h"
#include "bench/synthetic.h"
#include "machine.h"
#include "unit/engine/recording_backend.h"

namespace dsv4::parity {
namespace {

using ::dsv4::testing::RecordingBackend;

ModelConfig tiny_config() {
  ModelConfig c = std::move(builtin_config("flash")).value();
  c.vocab_size = 160;
  c.hidden_size = 256;
  c.num_hidden_layers = 4;
  c.num_hash_layers = 1;
  c.compress_ratios = {0, 4, 128, 4, 0};
  c.num_attention_heads = 4;
  c.head_dim = 128;
  c.q_lora_rank = 128;
  c.o_groups = 2;
  c.o_lora_rank = 64;
  c.sliding_window = 32;
  c.index_n_heads = 8;
  c.index_head_dim = 64;
  c.index_topk = 16;
  c.n_routed_experts = 6;
  c.num_experts_per_tok = 2;
  c.moe_intermediate_size = 128;
  return c;
}

class Bench : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ASSERT_EQ(validate(tiny_config(), "tiny").message(), "");
    machine_ = std::move(Machine::make(GetParam())).value();
    auto synthetic = bench::make_synthetic(tiny_config(), *machine_.backend, 1, {});
    ASSERT_TRUE(synthetic.ok()) << synthetic.status().message();
    synthetic_ = std::move(synthetic).value();
  }
  Machine machine_;
  bench::SyntheticModel synthetic_;
};

TEST_P(Bench, DecodeCountsWhatAStepReads) {
  const bench::ModelBenchOptions options{.context = 70, .tokens = 2, .batch = 2, .chunk = 33};
  auto r = bench::bench_decode(synthetic_.model, *machine_.backend, options, {});
  ASSERT_TRUE(r.ok()) << r.status().message();
  EXPECT_GT(r->tokens_per_s, 0.0);
  EXPECT_GT(r->fill_tokens_per_s, 0.0);
  std::set<std::string> ops;
  int64_t bytes = 0;
  for (const bench::OpShare& s : r->ops) {
    ops.insert(s.op);
    bytes += s.record.bytes;
  }
  EXPECT_EQ(bytes, r->bytes);
  for (const char* op :
       {"embed", "linear", "linear_stack", "attend", "grouped_linear", "moe", "hc_head"}) {
    EXPECT_TRUE(ops.count(op)) << op;
  }
  // At least the BF16 head and every FP8 matrix once; at most all weights, and the cache.
  const int64_t head = 160 * 256 * 2;
  EXPECT_GT(r->bytes, head);
  EXPECT_LT(r->bytes, int64_t{8} << 20);

  bench::ModelBenchOptions zero = options;
  zero.fill = false;
  auto unfilled = bench::bench_decode(synthetic_.model, *machine_.backend, zero, {});
  ASSERT_TRUE(unfilled.ok()) << unfilled.status().message();
  EXPECT_EQ(unfilled->fill_tokens_per_s, 0.0);
}

TEST_P(Bench, PrefillRunsInChunks) {
  const bench::ModelBenchOptions options{.tokens = 50, .chunk = 16, .repeats = 1};
  auto r = bench::bench_prefill(synthetic_.model, *machine_.backend, options, {});
  ASSERT_TRUE(r.ok()) << r.status().message();
  EXPECT_EQ(r->tokens_per_step, 50);
  for (const bench::OpShare& s : r->ops) {
    if (s.op == "moe") {
      EXPECT_EQ(s.record.calls, 4 * 4) << "layers times chunks";
    }
  }
  EXPECT_GT(r->flops, 0);
}

TEST_P(Bench, EveryOpHasATimedCase) {
  std::set<std::string> ops;
  const bench::TimingOptions timing{.context = 40, .experts = 6};
  for (const bench::CaseSpec& spec : bench::model_cases(tiny_config(), 3, timing)) {
    ops.insert(spec.op);
    const bench::OpCase c = spec.make();
    auto t = bench::time_op(c, *machine_.backend, nullptr, nullptr, nullptr, {.seconds = 0.0});
    ASSERT_TRUE(t.ok()) << spec.name << ": " << t.status().message();
    EXPECT_GT(t->us, 0.0) << spec.name;
    EXPECT_GT(t->cost.weight_bytes + t->cost.other_bytes, 0) << spec.name;
  }
  EXPECT_EQ(ops.size(), op_list().size());
}

// Where a backend records, times come from replays: of the same calls, each counted once.
TEST(RecordedBench, OpsAreThoseOfAPlainStep) {
  const Machine machine = std::move(Machine::make("reference")).value();
  auto made = bench::make_synthetic(tiny_config(), *machine.backend, 1, {});
  ASSERT_TRUE(made.ok()) << made.status().message();
  const Model& model = made->model;
  const bench::ModelBenchOptions options{.context = 70, .tokens = 1, .batch = 3, .fill = false};
  const auto plain = bench::bench_decode(model, *machine.backend, options, {});
  ASSERT_TRUE(plain.ok()) << plain.status().message();
  EXPECT_FALSE(plain->ops_replayed);
  RecordingBackend recording(*machine.backend);
  const auto replayed = bench::bench_decode(model, recording, options, {});
  ASSERT_TRUE(replayed.ok()) << replayed.status().message();
  EXPECT_TRUE(replayed->ops_replayed);
  std::map<std::string, int64_t> calls;
  for (const bench::OpShare& s : plain->ops) calls[s.op] = s.record.calls;
  ASSERT_EQ(replayed->ops.size(), calls.size());
  double ms = 0.0;
  for (const bench::OpShare& s : replayed->ops) {
    EXPECT_EQ(s.record.calls, calls[s.op]) << s.op;
    ms += static_cast<double>(s.record.ns) * 1e-6;
  }
  EXPECT_NEAR(replayed->ops_ms, ms, 1e-9);
}

// Eight calls at least, as often each copy of the weights; one before, which finds memory.
TEST(RecordedBench, AnOpIsTimedInAGraphOfCalls) {
  const Machine machine = std::move(Machine::make("reference")).value();
  RecordingBackend recording(*machine.backend);
  int64_t called = 0;
  bench::OpCase c = bench::linear_case({.T = 1, .N = 32, .K = 128}, bench::Values::kFinite, 1);
  c.call = [&called, call = c.call](OpContext& ctx, const bench::Bound& bound,
                                    const bench::Step& step) {
    ++called;
    return call(ctx, bound, step);
  };
  const auto t = bench::time_op(c, recording, nullptr, nullptr, nullptr, {.seconds = 0.0});
  ASSERT_TRUE(t.ok()) << t.status().message();
  EXPECT_EQ(recording.recorded, 1);
  EXPECT_EQ(recording.launched, 4);  // the first is not counted
  EXPECT_EQ(t->runs, 3);
  const int64_t calls = (8 + t->copies - 1) / t->copies * t->copies;
  EXPECT_EQ(called, 1 + 4 * calls);
  EXPECT_GT(t->us, 0.0);
}

INSTANTIATE_TEST_SUITE_P(Backends, Bench, ::testing::ValuesIn(backends_under_test()),
                         [](const auto& param) { return param.param; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Bench);

}  // namespace
}  // namespace dsv4::parity
