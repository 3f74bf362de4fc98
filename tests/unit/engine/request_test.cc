// What a request may ask for besides tokens: constraints, forced tokens, scores of its prompt,
// limits of its own; and an engine with a thread of its own.
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "dsv4/engine.h"
#include "unit/engine/collector.h"
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

// Allows the tokens of one list in its order, then one token for ever.
class InOrder : public TokenConstraint {
 public:
  InOrder(std::vector<int32_t> list, int32_t end) : list_(std::move(list)), end_(end) {}
  std::span<const uint64_t> allowed() noexcept override {
    mask_.assign((kVocab + 63) / 64, 0);
    if (done_) return {};
    const int32_t next = at_ < list_.size() ? list_[at_] : end_;
    mask_[static_cast<size_t>(next) / 64] |= uint64_t{1} << (next % 64);
    return mask_;
  }
  void accept(int32_t token) noexcept override {
    accepted.push_back(token);
    ++at_;
  }
  void anything_from_now() { done_ = true; }

  std::vector<int32_t> accepted;

 private:
  std::vector<int32_t> list_;
  int32_t end_;
  size_t at_ = 0;
  bool done_ = false;
  std::vector<uint64_t> mask_;
};

TEST(Request, AConstraintDecidesWhatMayBeDrawn) {
  auto engine = load();
  Request r = request(some_tokens(20, kVocab, 1), 50);
  r.ignore_eos = false;
  r.sampling.logprobs = 0;
  const int32_t eos = engine->info().eos_token;
  auto constraint = std::make_shared<InOrder>(std::vector<int32_t>{7, 383, 64, 63}, eos);
  r.constraint = constraint;
  const Outcome o = alone(*engine, r);
  EXPECT_EQ(o.tokens, (std::vector<int32_t>{7, 383, 64, 63, eos}));
  EXPECT_EQ(constraint->accepted, o.tokens);
  EXPECT_EQ(o.reason, FinishReason::kEos);
  for (const float l : o.logprobs) EXPECT_LT(l, 0);  // of the model, not of the only choice
}

class Nothing : public TokenConstraint {
 public:
  std::span<const uint64_t> allowed() noexcept override { return mask_; }
  void accept(int32_t) noexcept override {}

 private:
  std::vector<uint64_t> mask_ = std::vector<uint64_t>(static_cast<size_t>((kVocab + 63) / 64), 0);
};

TEST(Request, AConstraintThatAllowsNothingEndsItsRequestAlone) {
  auto engine = load({.max_sequences = 2});
  Collector sink;
  Request bad = request(some_tokens(20, kVocab, 1), 5);
  bad.constraint = std::make_shared<Nothing>();
  auto a = engine->submit(bad, sink);
  auto b = engine->submit(request(some_tokens(20, kVocab, 1), 5), sink);
  ASSERT_TRUE(a.ok() && b.ok());
  run_all(*engine);
  EXPECT_EQ(sink.of[*a].error.code(), Code::kInvalidArgument);
  EXPECT_NE(sink.of[*a].error.message().find("allows no token"), std::string::npos);
  EXPECT_EQ(sink.of[*b].reason, FinishReason::kMaxTokens);
  EXPECT_EQ(engine->stats().free_pages, engine->stats().total_pages);
}

TEST(Request, AConstraintThatAllowsAllChangesNothing) {
  auto engine = load();
  Request r = request(some_tokens(20, kVocab, 1), 12);
  const Outcome want = alone(*engine, r);
  auto constraint = std::make_shared<InOrder>(std::vector<int32_t>{}, 0);
  constraint->anything_from_now();
  r.constraint = constraint;
  EXPECT_EQ(alone(*engine, r).tokens, want.tokens);
}

TEST(Request, ForcedTokensComeWhenTheirBudgetIsSpent) {
  auto engine = load();
  const int32_t end_thinking = 300;
  Request r = request(some_tokens(20, kVocab, 1), 12);
  r.sampling.logprobs = 0;
  r.sampling.logit_bias = {{end_thinking, -1000.0f}};  // never by itself
  const Outcome plain = alone(*engine, r);
  r.forced = {{.after = 4, .tokens = {end_thinking, 10}, .unless = {end_thinking}},
              {.after = 5, .tokens = {11}, .unless = {}}};
  auto constraint = std::make_shared<InOrder>(std::vector<int32_t>{}, 0);
  constraint->anything_from_now();
  r.constraint = constraint;
  const Outcome o = alone(*engine, r);
  ASSERT_EQ(o.tokens.size(), 12u);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(o.tokens[i], plain.tokens[i]);
  EXPECT_EQ(o.tokens[4], end_thinking);
  EXPECT_EQ(o.tokens[5], 10);
  EXPECT_EQ(o.tokens[6], 11);
  for (size_t i = 0; i < 12; ++i) EXPECT_EQ(o.forced[i], i >= 4 && i <= 6) << i;
  EXPECT_EQ(o.logprobs.size(), 12u);
  EXPECT_EQ(constraint->accepted, o.tokens);
  // What follows is what the model says after these tokens.
  Request again = r;
  again.constraint = nullptr;
  again.forced.clear();
  again.prompt.insert(again.prompt.end(), o.tokens.begin(), o.tokens.begin() + 7);
  again.max_tokens = 5;
  EXPECT_EQ(alone(*engine, again).tokens,
            std::vector<int32_t>(o.tokens.begin() + 7, o.tokens.end()));
}

// The step samples where nobody looks at the logits, the host where somebody does.
TEST(Request, LogprobsChangeNoToken) {
  auto engine = load();
  SamplingParams hot, narrow, thin, cold;
  hot.temperature = 1.5f;
  narrow.top_k = 20;
  narrow.top_p = 0.9f;
  thin.min_p = 0.1f;
  cold.temperature = 0;
  for (const SamplingParams& sampling : {hot, narrow, thin, cold}) {
    Request r = request(some_tokens(20, kVocab, 1), 12);
    r.sampling = sampling;
    r.sampling.seed = 5;
    r.forced = {{.after = 3, .tokens = {9, 8}, .unless = {}}};
    const Outcome plain = alone(*engine, r);
    r.sampling.logprobs = 2;
    const Outcome told = alone(*engine, r);
    EXPECT_EQ(plain.tokens, told.tokens);
    ASSERT_EQ(plain.tokens.size(), 12u);
    EXPECT_EQ(plain.tokens[3], 9);
    EXPECT_EQ(plain.tokens[4], 8);
    EXPECT_TRUE(plain.logprobs.empty());
    EXPECT_EQ(told.logprobs.size(), 12u);
  }
}

TEST(Request, ForcedTokensAreDroppedWhenTheirWorkIsDone) {
  auto engine = load();
  Request r = request(some_tokens(20, kVocab, 1), 8);
  const Outcome plain = alone(*engine, r);
  r.forced = {{.after = 6, .tokens = {1}, .unless = {plain.tokens[2]}}};
  EXPECT_EQ(alone(*engine, r).tokens, plain.tokens);
  r.forced = {{.after = 0, .tokens = {9, 8}, .unless = {}}};
  const Outcome begun = alone(*engine, r);
  EXPECT_EQ(begun.tokens[0], 9);
  EXPECT_EQ(begun.tokens[1], 8);
  EXPECT_EQ(begun.tokens.size(), 8u);
}

TEST(Request, APromptIsScoredAsIfItHadBeenAnswered) {
  for (const int64_t rows : {1, 7, 16}) {
    auto engine = load({.max_sequences = 3, .prefill_chunk = 32, .prompt_logprob_rows = rows});
    Request r = request(some_tokens(20, kVocab, 1), 30);
    r.sampling.logprobs = 0;
    const Outcome answer = alone(*engine, r);
    Request echo = r;
    echo.prompt.insert(echo.prompt.end(), answer.tokens.begin(), answer.tokens.end());
    echo.max_tokens = 0;
    echo.prompt_logprobs = 2;
    Collector sink;  // two that are scored and one that is not, side by side
    auto a = engine->submit(echo, sink);
    auto b = engine->submit(r, sink);
    auto c = engine->submit(echo, sink);
    ASSERT_TRUE(a.ok() && b.ok() && c.ok());
    run_all(*engine);
    EXPECT_EQ(sink.of[*b].tokens, answer.tokens);
    for (const RequestId id : {*a, *c}) {
      const Outcome& o = sink.of[id];
      EXPECT_EQ(o.reason, FinishReason::kMaxTokens);
      EXPECT_EQ(o.tokens.size(), 0u);
      EXPECT_EQ(o.prompt, echo.prompt);
      ASSERT_EQ(o.prompt_logprobs.size(), 50u);
      EXPECT_FALSE(o.prompt_logprobs[0]);
      for (size_t i = 0; i < 30; ++i) {
        ASSERT_TRUE(o.prompt_logprobs[20 + i]);
        EXPECT_EQ(*o.prompt_logprobs[20 + i], answer.logprobs[i]) << i;
      }
    }
  }
}

TEST(Request, ARequestMayHaveAShorterContext) {
  auto engine = load();
  Request r = request(some_tokens(20, kVocab, 1), -1);
  r.max_context = 24;
  const Outcome o = alone(*engine, r);
  EXPECT_EQ(o.reason, FinishReason::kContext);
  EXPECT_EQ(o.tokens.size(), 5u);
  r.max_context = 19;
  Collector sink;
  EXPECT_EQ(engine->submit(r, sink).status().code(), Code::kTooLong);
}

TEST(Request, AFullQueueRefusesAndSaysSo) {
  auto engine = load({.max_sequences = 1, .max_queue = 2});
  Collector sink;
  const Request r = request(some_tokens(20, kVocab, 1), 4);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(engine->submit(r, sink).ok()) << i;
  auto refused = engine->submit(r, sink);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::kUnavailable);
  ASSERT_TRUE(engine->step().ok());
  EXPECT_FALSE(engine->submit(r, sink).ok());
  run_all(*engine);
  EXPECT_TRUE(engine->submit(r, sink).ok());
  run_all(*engine);
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.refused, 2);
  EXPECT_EQ(stats.submitted, 4);
  EXPECT_EQ(stats.finished, 4);
}

TEST(Request, FieldsWithoutMeaningAreNamed) {
  auto engine = load();
  Collector sink;
  const auto refused = [&](const Request& r, std::string_view part) {
    auto id = engine->submit(r, sink);
    ASSERT_FALSE(id.ok());
    EXPECT_EQ(id.status().code(), Code::kInvalidArgument);
    EXPECT_NE(id.status().message().find(part), std::string::npos) << id.status().message();
  };
  const Request good = request({1, 2, 3}, 2);
  Request r = good;
  r.forced = {{.after = 3, .tokens = {}, .unless = {}}};
  refused(r, "forced tokens 0");
  r.forced = {{.after = 3, .tokens = {1}, .unless = {}}, {.after = 2, .tokens = {1}, .unless = {}}};
  refused(r, "rising order");
  r.forced = {{.after = 0, .tokens = {kVocab}, .unless = {}}};
  refused(r, "has id 384");
  r = good;
  r.prompt_logprobs = -2;
  refused(r, "prompt_logprobs -2");
  r = good;
  r.max_context = -1;
  refused(r, "max_context -1");
}

// A sink that other threads can wait on.
class Waiter : public EventSink {
 public:
  void on_token(RequestId, const TokenEvent& event) noexcept override {
    const std::lock_guard lock(mutex_);
    tokens_.push_back(event.token);
  }
  void on_finish(RequestId, FinishReason, const Usage&) noexcept override { end(); }
  void on_error(RequestId, const Status&) noexcept override { end(); }
  std::vector<int32_t> wait() {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [this] { return done_; });
    return tokens_;
  }

 private:
  void end() {
    const std::lock_guard lock(mutex_);
    done_ = true;
    ended_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable ended_;
  bool done_ = false;
  std::vector<int32_t> tokens_;
};

TEST(EngineThread, AnswersRequestsOfManyThreads) {
  const auto prompt = [](uint32_t i) { return some_tokens(5 + 3 * i, kVocab, i); };
  std::vector<std::vector<int32_t>> want;
  {
    auto engine = load();
    for (uint32_t i = 0; i < 4; ++i)
      want.push_back(alone(*engine, request(prompt(i), 6, i)).tokens);
  }
  auto engine = load({.max_sequences = 3});
  Status ended(Code::kInternal, "never ran");
  std::jthread runner([&](std::stop_token stop) { ended = engine->run(stop); });
  {
    std::vector<std::jthread> clients;
    for (uint32_t i = 0; i < 4; ++i) {
      clients.emplace_back([&, i] {
        for (int round = 0; round < 3; ++round) {
          Waiter sink, dropped;
          auto id = engine->submit(request(prompt(i), 6, i), sink);
          auto gone = engine->submit(request(prompt(i), -1, i), dropped);
          ASSERT_TRUE(id.ok() && gone.ok());
          EXPECT_TRUE(engine->cancel(*gone).ok());
          EXPECT_EQ(sink.wait(), want[i]);
          dropped.wait();
          EXPECT_GE(engine->stats().submitted, 2);
        }
      });
    }
  }
  runner.request_stop();
  runner.join();
  EXPECT_TRUE(ended.ok()) << ended.message();
  EXPECT_EQ(engine->stats().cancelled, 12);
  EXPECT_EQ(engine->stats().finished, 12);
  EXPECT_EQ(engine->stats().free_pages, engine->stats().total_pages);
}

}  // namespace
}  // namespace dsv4
