// The prefix cache on a real model: identical answers and log probabilities, on both backends, over
// spans that are shared, memory that is short, and a restart.
#include <gtest/gtest.h>

#include "dsv4/engine.h"
#include "unit/checkpoint/temp_dir.h"
#include "unit/engine/collector.h"
#include "unit/engine/tiny_model.h"

namespace dsv4 {
namespace {

using testing::alone;
using testing::Collector;
using testing::kVocab;
using testing::Outcome;
using testing::request;
using testing::run_all;
using testing::some_tokens;

// A backend, and the format of its cache rows.
using Place = std::pair<const char*, const char*>;

class PrefixEngine : public ::testing::TestWithParam<Place> {
 protected:
  std::unique_ptr<Engine> load(EngineOptions options = {}) {
    options.model_dir = testing::tiny_model_dir();
    options.device = GetParam().first;
    if (options.cache_rows == "auto") options.cache_rows = GetParam().second;
    options.context = 1000;
    auto engine = Engine::load(options);
    EXPECT_TRUE(engine.ok()) << engine.status().message();
    return engine.ok() ? std::move(engine).value() : nullptr;
  }
};

std::vector<int32_t> joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

void expect_same(const Outcome& got, const Outcome& want) {
  EXPECT_EQ(got.tokens, want.tokens);
  EXPECT_EQ(got.logprobs, want.logprobs);
}

TEST_P(PrefixEngine, AConversationAnswersTheSameBitsAndRunsOnlyTheNewTurn) {
  auto plain = load({.cache_rows = "bf16"});
  auto cached = load({.max_sequences = 2, .prefill_chunk = 100, .prefix = {.enabled = true}});
  std::vector<int32_t> conversation = some_tokens(300, kVocab, 1);
  int64_t held = 0;
  for (uint32_t turn = 0; turn < 4; ++turn) {
    Request r = request(conversation, 20, turn);
    r.sampling.logprobs = 0;
    const Outcome want = alone(*plain, r), got = alone(*cached, r);
    expect_same(got, want);
    EXPECT_EQ(got.usage.cached_tokens, held);
    conversation = joined(conversation, got.tokens);
    held = std::ssize(conversation) - 1;
    conversation = joined(conversation, some_tokens(30 + turn, kVocab, 50 + turn));
  }
  const PrefixCacheStats stats = cached->stats().prefix;
  EXPECT_EQ(stats.hits, 3);
  EXPECT_EQ(stats.lookups, 4);
  EXPECT_GT(stats.device.page_hits, 0);
  EXPECT_EQ(cached->stats().free_pages, cached->stats().total_pages);
}

TEST_P(PrefixEngine, ShortMemoryAndARestartChangeNothing) {
  TempDir temp;
  const EngineOptions options{
      .max_sequences = 2,
      .cache_tokens = 1024,
      .prefill_chunk = 128,
      .prefix = {
          .enabled = true, .host_bytes = 200000, .disk_dir = temp.file("kv"), .snapshot_spans = 1}};
  const std::vector<int32_t> system = some_tokens(280, kVocab, 1);
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 4; ++i) {
    requests.push_back(request(joined(system, some_tokens(200 + 30 * i, kVocab, 9 + i)), 12, i));
    requests.back().sampling.logprobs = 0;
  }
  std::vector<Outcome> want;
  {
    auto plain = load({.cache_rows = "bf16"});
    for (const Request& r : requests) want.push_back(alone(*plain, r));
  }
  for (int life = 0; life < 2; ++life) {
    auto engine = load(options);
    ASSERT_TRUE(engine);
    for (int round = 0; round < 2; ++round) {
      Collector sink;
      std::vector<RequestId> ids;
      for (const Request& r : requests) {
        auto id = engine->submit(r, sink);
        ASSERT_TRUE(id.ok());
        ids.push_back(*id);
      }
      run_all(*engine);
      for (size_t i = 0; i < ids.size(); ++i) expect_same(sink.of[ids[i]], want[i]);
    }
    const EngineStats stats = engine->stats();
    EXPECT_GT(stats.prefix.hits, 4);
    EXPECT_EQ(stats.prefix.rejected_files, 0);
    if (life == 1) {
      EXPECT_GT(stats.prefix.disk.page_hits, 0);
    }
    auto second = Engine::load([&] {
      EngineOptions other = options;
      other.model_dir = testing::tiny_model_dir();
      other.device = GetParam().first;
      other.cache_rows = GetParam().second;
      other.context = 1000;
      return other;
    }());
    EXPECT_EQ(second.status().code(), Code::kUnavailable);  // the folder is taken
  }
}

// Pages on disk are of one format; an engine with the other does not take them for its own.
TEST(PrefixFormats, PagesOfOneAreNothingToTheOther) {
  TempDir temp;
  const auto load = [&](const char* cache_rows) {
    EngineOptions options{.device = "cpu",
                          .cache_rows = cache_rows,
                          .context = 1000,
                          .max_sequences = 2,
                          .prefix = {.enabled = true, .disk_dir = temp.file("kv"), .snapshot_spans = 1}};
    options.model_dir = testing::tiny_model_dir();
    auto engine = Engine::load(options);
    EXPECT_TRUE(engine.ok()) << engine.status().message();
    return engine.ok() ? std::move(engine).value() : nullptr;
  };
  Request r = request(some_tokens(600, kVocab, 3), 12, 1);
  r.sampling.logprobs = 0;
  const Outcome want = alone(*load("bf16"), r);
  const Outcome again = alone(*load("bf16"), r);
  EXPECT_GT(again.usage.cached_tokens, 0);
  expect_same(again, want);
  const Outcome other = alone(*load("fp8"), r);
  EXPECT_EQ(other.usage.cached_tokens, 0);
  expect_same(other, want);
}

INSTANTIATE_TEST_SUITE_P(Backends, PrefixEngine,
                         ::testing::Values(Place{"reference", "bf16"}, Place{"cpu", "bf16"}, Place{"cpu", "fp8"}),
                         [](const auto& param) { return std::string(param.param.first) + "_" + param.param.second; });

}  // namespace
}  // namespace dsv4
