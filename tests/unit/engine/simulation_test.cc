// The engine's decisions under load, over a model that costs nothing: random arrivals,
// cancellations and priorities, tight memory. Every answer equals the one of the request alone.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "unit/engine/collector.h"
#include "unit/engine/simulation.h"
#include "unit/engine/tiny_model.h"

namespace dsv4 {
namespace {

using testing::Collector;
using testing::FakeRunner;
using testing::Outcome;
using testing::request;
using testing::Simulation;
using testing::some_tokens;

Outcome solo(const Request& r, int64_t context = 200) {
  Simulation sim({.context = context, .pages = 64});
  Collector sink;
  auto id = sim.core->submit(r, sink);
  EXPECT_TRUE(id.ok()) << id.status().message();
  for (int i = 0; i < 1000; ++i) {
    auto report = sim.core->step();
    if (!report.ok() || report->idle()) break;
  }
  return sink.of[*id];
}

Request random_request(std::mt19937& rng) {
  const auto pick = [&](int64_t n) {
    return static_cast<int64_t>(rng() % static_cast<uint64_t>(n));
  };
  Request r = request(some_tokens(1 + pick(pick(4) == 0 ? 120 : 30), FakeRunner::kVocab,
                                  static_cast<uint32_t>(pick(40))),
                      1 + pick(60), static_cast<uint64_t>(pick(1000)));
  r.priority = static_cast<int32_t>(pick(5) == 0 ? pick(20) : 0);
  r.ignore_eos = pick(3) != 0;
  if (pick(6) == 0) r.prompt_logprobs = 0;
  if (pick(6) == 0) r.forced = {{.after = pick(8), .tokens = {5, 6}, .unless = {6}}};
  return r;
}

struct Load {
  const char* name;
  testing::SimulationOptions options;
  double arrivals;  // per step
};

class SimulatedLoad : public ::testing::TestWithParam<Load> {};

TEST_P(SimulatedLoad, EveryAnswerIsThatOfTheRequestAloneAndNothingLeaks) {
  Simulation sim(GetParam().options);
  EngineCore& core = *sim.core;
  std::mt19937 rng(11);
  const auto chance = [&](double p) { return static_cast<double>(rng() % 10000) < p * 10000; };
  Collector sink;
  std::map<RequestId, Request> sent;
  std::vector<RequestId> alive;
  int64_t cancelled = 0;
  for (int step = 0; step < 15000; ++step) {
    while (step < 12000 && chance(GetParam().arrivals)) {
      const Request r = random_request(rng);
      auto id = core.submit(r, sink);
      ASSERT_TRUE(id.ok()) << id.status().message();
      sent[*id] = r;
      alive.push_back(*id);
      if (!chance(0.5)) break;
    }
    if (!alive.empty() && chance(0.05)) {
      cancelled += core.cancel(alive[rng() % alive.size()]).ok() ? 1 : 0;
    }
    ASSERT_TRUE(core.step().ok());
    if (step % 50 == 0) {
      ASSERT_TRUE(core.check().ok()) << core.check().message();
    }
  }
  for (int i = 0; i < 20000; ++i) {
    auto report = core.step();
    ASSERT_TRUE(report.ok());
    if (report->idle()) break;
  }
  const EngineStats stats = core.stats();
  ASSERT_TRUE(core.check().ok()) << core.check().message();
  EXPECT_EQ(stats.running + stats.waiting, 0);
  EXPECT_EQ(stats.free_pages, stats.total_pages);
  EXPECT_TRUE(sim.runner->within_limits);
  EXPECT_LE(sim.runner->most_rows,
            GetParam().options.step_tokens
                ? GetParam().options.step_tokens
                : GetParam().options.prefill_chunk + GetParam().options.max_sequences);
  EXPECT_EQ(stats.finished + stats.cancelled, static_cast<int64_t>(sent.size()));
  EXPECT_LE(stats.cancelled, cancelled);
  EXPECT_GT(sent.size(), 100u);
  for (const auto& [id, r] : sent) {
    const Outcome& got = sink.of[id];
    ASSERT_TRUE(got.error.ok()) << got.error.message();
    const Outcome want = solo(r);
    if (got.reason == FinishReason::kCancelled) {
      ASSERT_LE(got.tokens.size(), want.tokens.size());
      ASSERT_TRUE(std::equal(got.tokens.begin(), got.tokens.end(), want.tokens.begin()));
    } else {
      ASSERT_EQ(got.tokens, want.tokens) << "request " << id;
      ASSERT_EQ(got.reason, want.reason);
      ASSERT_EQ(got.prompt_logprobs, want.prompt_logprobs);
    }
  }
  if (GetParam().options.prefix && GetParam().options.host_bytes > 0) {
    EXPECT_GT(stats.prefix.hits, 50);
    EXPECT_GT(stats.cached_tokens, 500);
  }
  RecordProperty("preemptions", std::to_string(stats.preemptions));
  if (GetParam().options.pages < 20) {
    EXPECT_GT(stats.preemptions, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Loads, SimulatedLoad,
    ::testing::Values(Load{"Roomy", {.max_sequences = 8, .pages = 128}, 0.2},
                      Load{"TightMemory", {.max_sequences = 6, .pages = 14}, 0.15},
                      Load{"SmallSteps", {.max_sequences = 8, .pages = 40, .step_tokens = 5}, 0.06},
                      Load{"Cached", {.max_sequences = 8, .pages = 128, .prefix = true}, 0.2},
                      Load{"CachedTightMemory",
                           {.max_sequences = 6, .pages = 14, .prefix = true, .host_bytes = 30000},
                           0.15},
                      Load{"CachedWithoutHostMemory",
                           {.max_sequences = 4, .pages = 19, .prefix = true, .host_bytes = 0},
                           0.1},
                      Load{"OnePlace", {.max_sequences = 1, .pages = 13}, 0.05}),
    [](const auto& load) { return load.param.name; });

// A request of low priority among a stream of urgent ones that alone fill the engine.
TEST(Simulation, NobodyStarvesUnderAStreamOfUrgentRequests) {
  Simulation sim({.max_sequences = 2, .pages = 26});
  Collector sink;
  Request low = request(some_tokens(60, FakeRunner::kVocab, 1), 30);
  low.priority = -3;
  auto id = sim.core->submit(low, sink);
  ASSERT_TRUE(id.ok());
  int64_t urgent_done = 0;
  for (int step = 0; step < 20000 && !sink.of[*id].reason; ++step) {
    if (sim.core->stats().waiting < 3) {
      Request urgent = request(some_tokens(40, FakeRunner::kVocab, 2), 30);
      urgent.priority = 3;
      ASSERT_TRUE(sim.core->submit(urgent, sink).ok());
    }
    ASSERT_TRUE(sim.core->step().ok());
    urgent_done = sim.core->stats().finished;
  }
  EXPECT_EQ(sink.of[*id].reason, FinishReason::kMaxTokens);
  EXPECT_GT(urgent_done, 3);
  EXPECT_EQ(sink.of[*id].tokens, solo(low).tokens);
}

TEST(Simulation, AnUrgentRequestTakesThePlaceOfAnother) {
  Simulation sim({.max_sequences = 1});
  Collector sink;
  const Request slow = request(some_tokens(30, FakeRunner::kVocab, 1), 60);
  auto a = sim.core->submit(slow, sink);
  ASSERT_TRUE(a.ok());
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(sim.core->step().ok());
  Request urgent = request(some_tokens(10, FakeRunner::kVocab, 2), 5);
  urgent.priority = 1;
  auto b = sim.core->submit(urgent, sink);
  ASSERT_TRUE(b.ok());
  while (!sink.of[*b].reason) ASSERT_TRUE(sim.core->step().ok());
  EXPECT_FALSE(sink.of[*a].reason);
  for (int i = 0; i < 500 && !sink.of[*a].reason; ++i) ASSERT_TRUE(sim.core->step().ok());
  EXPECT_EQ(sink.of[*a].tokens, solo(slow).tokens);
  EXPECT_EQ(sink.of[*a].usage.preemptions, 1);
  EXPECT_EQ(sink.of[*b].usage.preemptions, 0);
}

TEST(Simulation, AShortPromptOvertakesALongOne) {
  Simulation sim({.context = 2000, .max_sequences = 2, .pages = 200});
  Collector sink;
  auto a = sim.core->submit(request(some_tokens(1500, FakeRunner::kVocab, 1), 5), sink);
  ASSERT_TRUE(a.ok() && sim.core->step().ok());
  auto b = sim.core->submit(request(some_tokens(20, FakeRunner::kVocab, 2), 5), sink);
  ASSERT_TRUE(b.ok());
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(sim.core->step().ok());
  EXPECT_EQ(sink.of[*b].reason, FinishReason::kMaxTokens);
  EXPECT_TRUE(sink.of[*a].tokens.empty());
}

void run_to_rest(Simulation& sim) {
  for (int i = 0; i < 2000; ++i) {
    auto report = sim.core->step();
    ASSERT_TRUE(report.ok());
    if (report->idle()) return;
  }
  FAIL() << "the engine does not come to rest";
}

TEST(PrefixCache, AConversationRunsOnlyWhatIsNew) {
  Simulation sim({.context = 600, .pages = 80, .prefix = true});
  std::vector<int32_t> conversation = some_tokens(70, FakeRunner::kVocab, 1);
  int64_t held = 0;
  for (uint32_t turn = 0; turn < 6; ++turn) {
    const Request r = request(conversation, 25, turn);
    Collector sink;
    auto id = sim.core->submit(r, sink);
    ASSERT_TRUE(id.ok());
    run_to_rest(sim);
    const Outcome& o = sink.of[*id];
    EXPECT_EQ(o.tokens, solo(r, 600).tokens);
    EXPECT_EQ(o.usage.cached_tokens, held) << turn;
    // The last token was drawn and never ran; then the user says something.
    conversation.insert(conversation.end(), o.tokens.begin(), o.tokens.end());
    held = static_cast<int64_t>(conversation.size()) - 1;
    const auto more = some_tokens(10 + turn, FakeRunner::kVocab, 50 + turn);
    conversation.insert(conversation.end(), more.begin(), more.end());
  }
}

// n answers to one prompt that come at the same time: one runs it, the others begin where it ends.
TEST(PrefixCache, APromptThatManySendAtOnceRunsOnce) {
  Simulation sim({.max_sequences = 4, .pages = 64, .prefix = true});
  Collector sink;
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 8; ++i) {
    auto id = sim.core->submit(request(some_tokens(100, FakeRunner::kVocab, 1), 10, i), sink);
    ASSERT_TRUE(id.ok());
    ids.push_back(*id);
  }
  run_to_rest(sim);
  for (uint32_t i = 0; i < 8; ++i) {
    EXPECT_EQ(sink.of[ids[i]].tokens,
              solo(request(some_tokens(100, FakeRunner::kVocab, 1), 10, i)).tokens);
    // A few tokens less than all of it are not worth a wait.
    EXPECT_GT(sink.of[ids[i]].usage.cached_tokens, i == 0 ? -1 : 99 - 32);
  }
  EXPECT_LT(sim.core->stats().prefill_tokens, 100 + 7 * 33);
}

// A common beginning of any length: the second one asks the first to leave a snapshot there.
TEST(PrefixCache, ACommonBeginningRunsOnce) {
  Simulation sim({.max_sequences = 4, .pages = 64, .prefix = true});
  Collector sink;
  std::vector<Request> requests;
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 5; ++i) {
    std::vector<int32_t> prompt = some_tokens(75, FakeRunner::kVocab, 1);
    const auto own = some_tokens(20 + i, FakeRunner::kVocab, 70 + i);
    prompt.push_back(static_cast<int32_t>(i));
    prompt.insert(prompt.end(), own.begin(), own.end());
    requests.push_back(request(prompt, 10, i));
    auto id = sim.core->submit(requests.back(), sink);
    ASSERT_TRUE(id.ok());
    ids.push_back(*id);
    if (i == 0) {
      ASSERT_TRUE(sim.core->step().ok());
    }
  }
  run_to_rest(sim);
  for (uint32_t i = 0; i < 5; ++i) {
    EXPECT_EQ(sink.of[ids[i]].tokens, solo(requests[i]).tokens);
    EXPECT_GT(sink.of[ids[i]].usage.cached_tokens, i == 0 ? -1 : 75 - 32);
  }
}

// A session's own rows are shared with the index: where it cannot roll back it begins from there.
TEST(PrefixCache, SessionsAndTheIndexDoNotDisturbEachOther) {
  Simulation sim({.context = 600, .max_sequences = 3, .pages = 60, .prefix = true});
  const SessionId session = sim.core->open_session();
  std::vector<int32_t> conversation = some_tokens(50, FakeRunner::kVocab, 1);
  std::mt19937 rng(5);
  for (uint32_t turn = 0; turn < 60; ++turn) {
    Request r = request(conversation, 1 + turn % 20, turn);
    if (turn % 3 != 0) r.session = session;
    Collector sink;
    auto id = sim.core->submit(r, sink);
    ASSERT_TRUE(id.ok());
    run_to_rest(sim);
    ASSERT_TRUE(sim.core->check().ok()) << sim.core->check().message();
    const Outcome& o = sink.of[*id];
    r.session = 0;
    ASSERT_EQ(o.tokens, solo(r, 600).tokens) << turn;
    conversation.insert(conversation.end(), o.tokens.begin(), o.tokens.end());
    // Now and then the user goes back, a little or a lot.
    if (turn % 4 == 1) conversation.resize(conversation.size() - 1 - rng() % 3);
    if (conversation.size() > 300) conversation.resize(20 + rng() % 100);
  }
  EXPECT_GT(sim.core->stats().cached_tokens, 3000);
}

TEST(PrefixCache, ARequestMayDoWithoutIt) {
  Simulation sim({.pages = 64, .prefix = true});
  Request r = request(some_tokens(60, FakeRunner::kVocab, 1), 5);
  r.use_prefix_cache = false;
  for (int i = 0; i < 2; ++i) {
    Collector sink;
    auto id = sim.core->submit(r, sink);
    ASSERT_TRUE(id.ok());
    run_to_rest(sim);
    EXPECT_EQ(sink.of[*id].usage.cached_tokens, 0);
  }
  EXPECT_EQ(sim.core->stats().prefix.device.pages, 0);
}

TEST(Simulation, AQueueThatIsFullSaysWhenToComeBack) {
  Simulation sim({.max_sequences = 2, .max_queue = 3});
  Collector sink;
  const Request r = request(some_tokens(30, FakeRunner::kVocab, 1), 20);
  std::vector<Result<RequestId>> results;
  for (int i = 0; i < 6; ++i) results.push_back(sim.core->submit(r, sink));
  EXPECT_TRUE(results[4].ok());
  EXPECT_EQ(results[5].status().code(), Code::kUnavailable);
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(sim.core->step().ok());
  EXPECT_GT(sim.core->stats().retry_after_seconds, 0);
  EXPECT_LT(sim.core->stats().retry_after_seconds, 2);
  EXPECT_TRUE(sim.core->submit(r, sink).ok());
}

}  // namespace
}  // namespace dsv4
