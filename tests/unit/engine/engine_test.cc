// The public engine: requests side by side, sessions, ends and refusals.
#include "dsv4/engine.h"

#include <gtest/gtest.h>

#include "engine/engine_core.h"
#include "engine/memory_plan.h"
#include "unit/engine/collector.h"
#include "unit/engine/recording_backend.h"
#include "unit/engine/tiny_model.h"

namespace dsv4 {
namespace {

using testing::alone;
using testing::Collector;
using testing::kVocab;
using testing::load;
using testing::Outcome;
using testing::request;
using testing::run_all;
using testing::some_tokens;

TEST(Engine, RequestsSideBySideAnswerAsAlone) {
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 5; ++i) {
    requests.push_back(request(some_tokens(5 + 31 * i, kVocab, i), 12 + i, i));
    requests.back().sampling.temperature = i == 0 ? 0.0f : 1.0f;
    requests.back().sampling.repetition_penalty = 1.1f;
  }
  std::vector<std::vector<int32_t>> want;
  {
    auto engine = load();
    for (const Request& r : requests) want.push_back(alone(*engine, r).tokens);
  }
  // Three at a time, so that two wait, with chunks that cut prompts.
  auto engine = load({.max_sequences = 3, .prefill_chunk = 16});
  Collector sink;
  std::vector<RequestId> ids;
  for (const Request& r : requests) {
    auto id = engine->submit(r, sink);
    ASSERT_TRUE(id.ok()) << id.status().message();
    ids.push_back(*id);
  }
  auto report = engine->step();
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->running, 3);
  EXPECT_EQ(report->waiting, 2);
  EXPECT_EQ(report->prefill_rows, 16);
  run_all(*engine);
  for (size_t i = 0; i < ids.size(); ++i) {
    const Outcome& o = sink.of[ids[i]];
    EXPECT_EQ(o.tokens, want[i]) << "request " << i;
    EXPECT_EQ(o.tokens.size(), 12 + i);
    EXPECT_EQ(o.reason, FinishReason::kMaxTokens);
    EXPECT_EQ(o.usage.completion_tokens, static_cast<int64_t>(12 + i));
    EXPECT_EQ(o.prefilled, static_cast<int64_t>(5 + 31 * i));
  }
  EXPECT_EQ(engine->stats().free_pages, engine->stats().total_pages);
}

TEST(Engine, ASessionRunsOnlyWhatIsNew) {
  auto plain = load();
  auto engine = load({.max_rollback = 4});
  const SessionId session = engine->open_session();
  const auto both = [&](const std::vector<int32_t>& prompt, int64_t cached) {
    const Outcome want = alone(*plain, request(prompt, 6));
    Request r = request(prompt, 6);
    r.session = session;
    const Outcome got = alone(*engine, r);
    EXPECT_EQ(got.tokens, want.tokens);
    EXPECT_EQ(got.usage.cached_tokens, cached);
    return got.tokens;
  };
  std::vector<int32_t> prompt = some_tokens(40, kVocab, 1);
  std::vector<int32_t> answer = both(prompt, 0);
  // The conversation goes on; the last token of the answer was drawn but never ran.
  prompt.insert(prompt.end(), answer.begin(), answer.end());
  const std::vector<int32_t> more = some_tokens(9, kVocab, 2);
  prompt.insert(prompt.end(), more.begin(), more.end());
  answer = both(prompt, 45);
  const auto held = static_cast<int64_t>(prompt.size()) + 5;
  // A change within reach of a rollback, then one beyond it, then a shorter prompt.
  prompt.insert(prompt.end(), answer.begin(), answer.end());
  prompt[static_cast<size_t>(held - 3)] ^= 1;
  answer = both(prompt, held - 3);
  prompt[10] ^= 1;
  both(prompt, 0);
  both(some_tokens(40, kVocab, 1), 0);
  // The same prompt again: its last token has to run, here out of reach of a rollback by 4.
  both(some_tokens(40, kVocab, 1), 0);
  EXPECT_TRUE(engine->close_session(session).ok());
  EXPECT_FALSE(engine->close_session(session).ok());
  ASSERT_TRUE(engine->step().ok());
  EXPECT_EQ(engine->stats().free_pages, engine->stats().total_pages);
}

TEST(Engine, IdleSessionsGiveWayToRequests) {
  auto engine = load({.max_sequences = 1});
  const SessionId session = engine->open_session();
  Request r = request(some_tokens(20, kVocab, 1), 3);
  r.session = session;
  const Outcome first = alone(*engine, r);
  EXPECT_LT(engine->stats().free_pages, engine->stats().total_pages);
  const Outcome other = alone(*engine, request(some_tokens(20, kVocab, 9), 3));
  EXPECT_EQ(other.reason, FinishReason::kMaxTokens);
  const Outcome again = alone(*engine, r);
  EXPECT_EQ(again.tokens, first.tokens);
  EXPECT_EQ(again.usage.cached_tokens, 0);
}

TEST(Engine, ARequestWaitsUntilItsWholeLengthIsFree) {
  // Two slots, but one span of tokens: the second request starts when the first has ended.
  auto engine = load({.context = 200, .max_sequences = 2, .cache_tokens = 256});
  Collector sink;
  auto a = engine->submit(request(some_tokens(20, kVocab, 1), 5), sink);
  auto b = engine->submit(request(some_tokens(20, kVocab, 1), 5), sink);
  ASSERT_TRUE(a.ok() && b.ok());
  auto report = engine->step();
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->running, 1);
  EXPECT_EQ(report->waiting, 1);
  run_all(*engine);
  EXPECT_EQ(sink.of[*a].tokens, sink.of[*b].tokens);
  EXPECT_EQ(sink.of[*b].reason, FinishReason::kMaxTokens);
}

TEST(Engine, EveryEndHasItsReason) {
  auto engine = load({.context = 64});
  const Request base = request(some_tokens(50, kVocab, 4), -1, 3);
  const Outcome full = alone(*engine, base);
  EXPECT_EQ(full.reason, FinishReason::kContext);
  EXPECT_EQ(full.tokens.size(), 15u);  // positions 50..63 run, one more is drawn behind them

  Request stop = base;
  stop.stop_tokens = {full.tokens[4]};
  const Outcome stopped = alone(*engine, stop);
  EXPECT_EQ(stopped.reason, FinishReason::kStopToken);
  EXPECT_EQ(stopped.tokens.back(), full.tokens[4]);

  Request eos = base;
  eos.ignore_eos = false;
  eos.sampling.logit_bias = {{engine->info().eos_token, 1000.0f}};
  const Outcome ended = alone(*engine, eos);
  EXPECT_EQ(ended.reason, FinishReason::kEos);
  EXPECT_EQ(ended.tokens, (std::vector<int32_t>{engine->info().eos_token}));

  Request one = base;
  one.prompt.resize(1);
  one.max_tokens = 1;
  one.sampling.logprobs = 2;
  const Outcome single = alone(*engine, one);
  EXPECT_EQ(single.reason, FinishReason::kMaxTokens);
  EXPECT_EQ(single.tokens.size(), 1u);
  ASSERT_EQ(single.logprobs.size(), 1u);
  EXPECT_LE(single.logprobs[0], 0);
}

TEST(Engine, CancelEndsRunningAndWaitingRequests) {
  auto engine = load({.prefill_chunk = 8});
  Collector sink;
  auto a = engine->submit(request(some_tokens(100, kVocab, 1), -1), sink);
  auto b = engine->submit(request(some_tokens(10, kVocab, 1), -1), sink);
  ASSERT_TRUE(a.ok() && b.ok());
  ASSERT_TRUE(engine->step().ok());
  ASSERT_TRUE(engine->cancel(*a).ok());
  ASSERT_TRUE(engine->cancel(*b).ok());
  auto report = engine->step();
  ASSERT_TRUE(report.ok());
  EXPECT_TRUE(report->idle());
  EXPECT_EQ(sink.of[*a].reason, FinishReason::kCancelled);
  EXPECT_EQ(sink.of[*a].prefilled, 8);
  EXPECT_EQ(sink.of[*b].reason, FinishReason::kCancelled);
  EXPECT_EQ(engine->cancel(*a).code(), Code::kNotFound);
  EXPECT_EQ(engine->stats().free_pages, engine->stats().total_pages);
}

TEST(Engine, RequestsWithoutMeaningAreRefusedAtOnce) {
  auto engine = load({.context = 64});
  Collector sink;
  const auto refused = [&](const Request& r, std::string_view part) {
    auto id = engine->submit(r, sink);
    ASSERT_FALSE(id.ok());
    EXPECT_NE(id.status().message().find(part), std::string::npos) << id.status().message();
  };
  const Request good = request({1, 2, 3}, 2);
  refused(request({}, 2), "no tokens");
  refused(request({1, kVocab}, 2), "token 1 has id 384");
  refused(request({-1}, 2), "token 0 has id -1");
  refused(request({1}, 0), "max_tokens 0");
  refused(request(some_tokens(65, kVocab, 1), 2), "the context holds 64");
  Request r = good;
  r.sampling.top_p = 2;
  refused(r, "top_p");
  r = good;
  r.stop_tokens = {kVocab};
  refused(r, "stop_tokens");
  r = good;
  r.session = 77;
  refused(r, "session 77 is not open");
  r.session = engine->open_session();
  ASSERT_TRUE(engine->submit(r, sink).ok());
  refused(r, "still has a request");
  run_all(*engine);
}

TEST(Engine, ARequestThatTheCacheCanNeverHoldIsRefused) {
  auto engine = load({.context = 600, .cache_tokens = 256});
  Collector sink;
  auto id = engine->submit(request(some_tokens(200, kVocab, 1), -1), sink);
  ASSERT_FALSE(id.ok());
  EXPECT_EQ(id.status().code(), Code::kTooLong);
  EXPECT_TRUE(engine->submit(request(some_tokens(200, kVocab, 1), 10), sink).ok());
  run_all(*engine);
}

TEST(Engine, SteadyStateAllocatesNoWorkspace) {
  auto engine = load();
  alone(*engine, request(some_tokens(100, kVocab, 1), 5));
  const EngineStats before = engine->stats();
  alone(*engine, request(some_tokens(100, kVocab, 2), 20));
  EXPECT_EQ(engine->stats().workspace_growths, before.workspace_growths);
  EXPECT_EQ(engine->stats().workspace_bytes, before.workspace_bytes);
}

// Where steps are recorded they are before the first request, and that is all that is left of it.
TEST(Engine, AWarmUpLeavesMemoryAndRecordingsAndNothingElse) {
  auto loaded = load_model(testing::tiny_model_dir(), "reference", {});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  testing::RecordingBackend backend(*loaded->backend);
  const Model& model = *loaded->model;
  EngineOptions options{.context = 320, .max_sequences = 6};
  options.prefix.enabled = true;
  const auto limits =
      resolve_limits(options, model.config, make_cache_spec(model.config, model.plan));
  ASSERT_TRUE(limits.ok()) << limits.status().message();
  auto core = EngineCore::make(model, *limits, backend, backend.ops(), {1, 2});
  ASSERT_TRUE(core.ok()) << core.status().message();
  EXPECT_EQ((*core)->warm_up().steps, 3);
  EXPECT_EQ(backend.recorded, 3);

  const EngineStats before = (*core)->stats();
  EXPECT_EQ(before.steps, 0);
  EXPECT_EQ(before.free_pages, before.total_pages);
  EXPECT_EQ(before.prefix.device.pages + before.prefix.host.snapshots, 0);
  EXPECT_EQ(before.prefix.lookups, 0);
  EXPECT_TRUE((*core)->check().ok()) << (*core)->check().message();

  Collector sink;
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 4; ++i) {
    auto id = (*core)->submit(request(some_tokens(30 + 10 * i, kVocab, i), 6), sink);
    ASSERT_TRUE(id.ok()) << id.status().message();
    ids.push_back(*id);
  }
  const int64_t launched = backend.launched;
  for (;;) {
    const auto report = (*core)->step();
    ASSERT_TRUE(report.ok()) << report.status().message();
    if (report->idle()) break;
  }
  EXPECT_GT(backend.launched, launched);
  EXPECT_EQ(backend.recorded, 3);  // four beside each other: replayed from the first step on
  EXPECT_EQ((*core)->stats().workspace_growths, before.workspace_growths);
  auto plain = load();
  for (uint32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(sink.of[ids[i]].tokens,
              alone(*plain, request(some_tokens(30 + 10 * i, kVocab, i), 6)).tokens);
  }
}

TEST(Engine, ThePlanComesBeforeTheWeightsAndAddsUp) {
  EngineOptions options;
  options.model_dir = testing::tiny_model_dir();
  options.device = "reference";
  options.context = 1000;
  options.max_sequences = 2;
  auto plan = Engine::plan(options);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->cache_tokens, 2048);
  EXPECT_GT(plan->checkpoint, 100000u);
  EXPECT_GT(plan->activations, 0u);
  size_t regions = 0;
  for (const auto& region : plan->regions) regions += region.bytes;
  EXPECT_EQ(regions, plan->cache);
  EXPECT_EQ(plan->total(), plan->weights + plan->activations + plan->cache + plan->workspace);
  EXPECT_NE(to_text(*plan).find("total"), std::string::npos);

  std::vector<std::string> events;
  options.on_plan = [&](const MemoryPlan& p) {
    EXPECT_EQ(p.total(), plan->total());
    events.push_back("plan");
  };
  options.progress = [&](const LoadProgress&) {
    if (events.size() < 2) events.push_back("weights");
  };
  ASSERT_TRUE(Engine::load(options).ok());
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(events[0], "plan");
}

TEST(Engine, OptionsOutOfRangeAreNamed) {
  EngineOptions options;
  options.model_dir = testing::tiny_model_dir();
  const auto refused = [&](EngineOptions o, std::string_view part) {
    o.model_dir = options.model_dir;
    auto plan = Engine::plan(o);
    ASSERT_FALSE(plan.ok());
    EXPECT_NE(plan.status().message().find(part), std::string::npos) << plan.status().message();
  };
  refused({.context = 5000}, "context 5000: expected 1..1024");
  refused({.max_sequences = 0}, "max_sequences 0");
  refused({.prefill_chunk = 0}, "prefill_chunk 0");
  refused({.max_rollback = -1}, "max_rollback -1");
  refused({.device = "abacus"}, "unknown device \"abacus\"");
  refused({.cache_rows = "wood"}, "unknown cache rows \"wood\": expected fp8, bf16 or auto");
}

TEST(Engine, CacheRowsInFp8TakeLessMemory) {
  EngineOptions options;
  options.model_dir = testing::tiny_model_dir();
  options.device = "cpu";
  options.cache_rows = "bf16";
  const auto wide = Engine::plan(options);
  options.cache_rows = "fp8";
  const auto narrow = Engine::plan(options);
  ASSERT_TRUE(wide.ok() && narrow.ok());
  EXPECT_EQ(wide->cache_rows, "bf16");
  EXPECT_EQ(narrow->cache_rows, "fp8");
  EXPECT_LT(narrow->cache, wide->cache);
  EXPECT_LT(narrow->cache_per_token, wide->cache_per_token);
  EXPECT_NE(to_text(*narrow).find("rows in fp8"), std::string::npos);
}

}  // namespace
}  // namespace dsv4
