// The runner on small models: what a sequence computes depends on its tokens alone, not on
// chunking, neighbours, rolled back drafts or what a slot held before.
#include "engine/runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "unit/engine/recording_backend.h"
#include "unit/engine/tiny_model.h"

namespace dsv4 {
namespace {

using testing::some_tokens;

constexpr int64_t kContext = 512;
constexpr int64_t kTokens = 280;  // longer than a span

using Rows = std::vector<std::vector<float>>;  // logits by position

class RunnerTest : public ::testing::Test {
 protected:
  void SetUp() override { load(testing::tiny_model_dir()); }

  void load(const std::string& dir) {
    auto loaded = load_model(dir, "reference", nullptr);
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    runner_.reset();
    cache_.reset();
    loaded_ = std::move(loaded).value();
    make(5, kContext * 5);
    tokens_ = some_tokens(kTokens, vocab(), 1);
  }

  void make(int64_t sequences, int64_t cache_tokens) {
    runner_.reset();
    const Model& model = *loaded_.model;
    auto cache =
        KvCache::make(make_cache_spec(model.config, model.plan),
                      {.max_sequences = sequences, .max_tokens = cache_tokens, .max_rollback = 8},
                      *loaded_.backend);
    ASSERT_TRUE(cache.ok()) << cache.status().message();
    cache_ = std::move(cache).value();
    auto runner = Runner::make(
        model, *cache_,
        {.max_rows = 1024, .max_sequences = sequences, .max_logit_rows = 1024, .context = kContext},
        *loaded_.backend, loaded_.backend->ops());
    ASSERT_TRUE(runner.ok()) << runner.status().message();
    runner_ = std::move(runner).value();
  }

  // Another runner over the same cache, for few rows; nullptr where a test has failed.
  std::unique_ptr<Runner> small_runner(int64_t sequences, Backend& backend, const OpTable& ops) {
    auto runner = Runner::make(*loaded_.model, *cache_,
                               {.max_rows = 64,
                                .max_sequences = sequences,
                                .max_logit_rows = sequences,
                                .context = kContext},
                               backend, ops);
    EXPECT_TRUE(runner.ok()) << runner.status().message();
    return runner.ok() ? std::move(runner).value() : nullptr;
  }

  int64_t vocab() const { return loaded_.model->config.vocab_size; }

  SequenceCache open() {
    auto seq = cache_->open();
    EXPECT_TRUE(seq.ok());
    return std::move(seq).value();
  }

  // Runs tokens behind seq in chunks and returns a row of logits for each.
  Rows feed(SequenceCache& seq, std::span<const int32_t> tokens, int64_t chunk) {
    Rows rows;
    for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(chunk)) {
      const auto part =
          tokens.subspan(first, std::min(tokens.size() - first, static_cast<size_t>(chunk)));
      const SequenceRows step = {.cache = &seq, .tokens = part, .logits = LogitRows::kAll};
      auto logits = runner_->run({&step, 1});
      EXPECT_TRUE(logits.ok()) << logits.status().message();
      if (!logits.ok()) return rows;
      append(rows, *logits, 0, std::ssize(part));
      EXPECT_TRUE(seq.commit(std::ssize(part)).ok());
    }
    return rows;
  }

  static void append(Rows& rows, const LogitsView& logits, int64_t first, int64_t n) {
    for (int64_t i = first; i < first + n; ++i) {
      rows.emplace_back(logits.row(i).begin(), logits.row(i).end());
    }
  }

  static void expect_same(const Rows& got, const Rows& want, const std::string& what) {
    ASSERT_EQ(got.size(), want.size()) << what;
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(std::memcmp(got[i].data(), want[i].data(), got[i].size() * sizeof(float)), 0)
          << what << ": position " << i;
    }
  }

  void expect_chunking_is_neutral(std::span<const int32_t> tokens,
                                  const std::vector<int64_t>& chunks) {
    Rows want;
    {
      SequenceCache seq = open();
      want = feed(seq, tokens, 1);
    }
    for (const int64_t chunk : chunks) {
      SequenceCache seq = open();
      expect_same(feed(seq, tokens, chunk), want, "chunks of " + std::to_string(chunk));
    }
  }

  LoadedModel loaded_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Runner> runner_;
  std::vector<int32_t> tokens_;
};

TEST_F(RunnerTest, ChunkingDoesNotChangeABit) {
  expect_chunking_is_neutral(tokens_, {7, 64, 128, 1000});
}

TEST_F(RunnerTest, NeighboursDoNotChangeABit) {
  // Five sequences of different lengths; each runs alone first, then all in ragged batches.
  std::vector<std::vector<int32_t>> prompts;
  std::vector<Rows> want, got(5);
  for (uint32_t i = 0; i < 5; ++i) {
    prompts.push_back(some_tokens(30 + 37 * i, vocab(), 10 + i));
    SequenceCache seq = open();
    want.push_back(feed(seq, prompts.back(), 64));
  }
  std::vector<SequenceCache> seqs;
  for (int i = 0; i < 5; ++i) seqs.push_back(open());
  const std::vector<int64_t> stride = {1, 50, 7, 33, 128};
  for (bool more = true; more;) {
    std::vector<SequenceRows> step;
    std::vector<size_t> who;
    for (size_t i = 0; i < 5; ++i) {
      const auto first = static_cast<size_t>(seqs[i].length());
      const size_t n = std::min(prompts[i].size() - first, static_cast<size_t>(stride[i]));
      if (n == 0) continue;
      step.push_back(
          {&seqs[i], std::span<const int32_t>(prompts[i]).subspan(first, n), LogitRows::kAll});
      who.push_back(i);
    }
    more = !step.empty();
    if (!more) break;
    auto logits = runner_->run(step);
    ASSERT_TRUE(logits.ok()) << logits.status().message();
    int64_t row = 0;
    for (size_t j = 0; j < step.size(); ++j) {
      const std::ptrdiff_t n = std::ssize(step[j].tokens);
      append(got[who[j]], *logits, row, n);
      row += n;
      ASSERT_TRUE(step[j].cache->commit(n).ok());
    }
  }
  for (size_t i = 0; i < 5; ++i) expect_same(got[i], want[i], "sequence " + std::to_string(i));
  EXPECT_TRUE(cache_->check().ok());
}

TEST_F(RunnerTest, RolledBackTokensLeaveNoTrace) {
  const std::span<const int32_t> prompt = std::span(tokens_).first(254);  // drafts finish entries
  const std::span<const int32_t> draft = std::span(tokens_).subspan(260, 5);
  std::vector<int32_t> kept(draft.begin(), draft.begin() + 2);
  const std::vector<int32_t> others = some_tokens(12, vocab(), 77);

  SequenceCache plain = open();
  feed(plain, prompt, 100);
  Rows want = feed(plain, kept, 2);
  for (auto& row : feed(plain, others, 12)) want.push_back(row);

  for (const bool one_by_one : {true, false}) {
    for (const int64_t chunk : {1, 12}) {
      SequenceCache seq = open();
      feed(seq, prompt, 100);
      Rows got = feed(seq, draft, one_by_one ? 1 : 5);
      got.resize(2);
      ASSERT_TRUE(seq.rollback(3).ok());
      for (auto& row : feed(seq, others, chunk)) got.push_back(row);
      expect_same(got, want, one_by_one ? "drafts one by one" : "drafts in one step");
    }
  }
}

TEST_F(RunnerTest, AcceptingAPartOfADraftEqualsNotHavingDraftedTheRest) {
  const std::span<const int32_t> prompt = std::span(tokens_).first(126);
  SequenceCache plain = open();
  feed(plain, prompt, 126);
  const Rows want = feed(plain, std::span(tokens_).subspan(126, 40), 40);

  SequenceCache seq = open();
  feed(seq, prompt, 126);
  Rows got;
  // Each step drafts five tokens of which two are right.
  for (size_t p = 126; p < 166; p += 2) {
    std::vector<int32_t> draft = some_tokens(5, vocab(), static_cast<uint32_t>(p));
    draft[0] = tokens_[p];
    draft[1] = tokens_[p + 1];
    const SequenceRows step = {.cache = &seq, .tokens = draft, .logits = LogitRows::kAll};
    auto logits = runner_->run({&step, 1});
    ASSERT_TRUE(logits.ok()) << logits.status().message();
    append(got, *logits, 0, 2);
    ASSERT_TRUE(seq.commit(2).ok());
  }
  expect_same(got, want, "drafts of five, two accepted");
}

TEST_F(RunnerTest, AReusedSlotIsAsNew) {
  make(1, kContext);
  const auto prompt = some_tokens(40, vocab(), 3);
  Rows want;
  {
    SequenceCache seq = open();
    want = feed(seq, prompt, 9);
  }
  {
    SequenceCache seq = open();
    feed(seq, tokens_, 100);
  }
  SequenceCache seq = open();
  ASSERT_EQ(seq.slot(), 0);
  expect_same(feed(seq, prompt, 9), want, "after another sequence");
  seq.clear();
  expect_same(feed(seq, prompt, 9), want, "after clear");
}

TEST_F(RunnerTest, RowsWithoutLogitsAreComputedAllTheSame) {
  SequenceCache all = open(), last = open();
  const Rows want = feed(all, std::span(tokens_).first(50), 50);
  SequenceRows step = {&last, std::span(tokens_).first(30), LogitRows::kNone};
  auto none = runner_->run({&step, 1});
  ASSERT_TRUE(none.ok()) << none.status().message();
  EXPECT_EQ(none->rows, 0);
  ASSERT_TRUE(last.commit(30).ok());
  step = {&last, std::span<const int32_t>(tokens_).subspan(30, 20), LogitRows::kLast};
  auto one = runner_->run({&step, 1});
  ASSERT_TRUE(one.ok()) << one.status().message();
  ASSERT_EQ(one->rows, 1);
  Rows got;
  append(got, *one, 0, 1);
  expect_same(got, {want.back()}, "last row");
}

TEST_F(RunnerTest, WhatIsSampledComesAsTokensAndTheRestAsLogits) {
  SequenceCache whole = open(), a = open(), b = open(), c = open(), d = open();
  const Rows want = feed(whole, std::span(tokens_).first(40), 40);
  const auto best = [](const std::vector<float>& row) {
    return static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
  };
  const SampleRow largest{.kind = SampleKind::kLargest};
  const std::span<const int32_t> text(tokens_);
  const std::vector<SequenceRows> step = {
      {&a, text.first(10), LogitRows::kLast, largest},
      {&b, text.first(7), LogitRows::kAll, largest},  // all are wanted: none is sampled
      {&c, text.first(40), LogitRows::kLast, largest},
      {&d, text.first(20), LogitRows::kLast}};
  const auto result = runner_->run(step);
  ASSERT_TRUE(result.ok()) << result.status().message();
  ASSERT_EQ(result->rows, 10);
  EXPECT_EQ(result->tokens[0], best(want[9]));
  EXPECT_EQ(result->tokens[8], best(want[39]));
  Rows got;
  append(got, *result, 1, 7);
  append(got, *result, 9, 1);
  for (const int64_t row : {1, 2, 3, 4, 5, 6, 7, 9}) EXPECT_FALSE(result->has_token(row)) << row;
  expect_same(got, {want[0], want[1], want[2], want[3], want[4], want[5], want[6], want[19]},
              "logits");
}

Status sample_but_the_second(OpContext& ctx, const SampleArgs& a) {
  DSV4_TRY(ctx.backend.ops().sample(ctx, a));
  if (a.R > 1) a.tokens[1] = kNoToken;
  return {};
}

// As where its logits are no numbers: these tell which one and what it is.
TEST_F(RunnerTest, ARowThatCannotBeSampledBringsItsLogits) {
  OpTable ops = loaded_.backend->ops();
  ops.sample = {sample_but_the_second, "test"};
  const auto runner = small_runner(5, *loaded_.backend, ops);
  ASSERT_TRUE(runner);
  SequenceCache whole = open(), a = open(), b = open();
  const Rows want = feed(whole, std::span(tokens_).first(12), 12);
  const SampleRow largest{.kind = SampleKind::kLargest};
  const std::span<const int32_t> text(tokens_);
  const std::vector<SequenceRows> step = {{&a, text.first(9), LogitRows::kLast, largest},
                                          {&b, text.first(12), LogitRows::kLast, largest}};
  const auto result = runner->run(step);
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_TRUE(result->has_token(0));
  EXPECT_FALSE(result->has_token(1));
  Rows got;
  append(got, *result, 1, 1);
  expect_same(got, {want[11]}, "logits of the row without a token");
}

TEST_F(RunnerTest, BadBatchesAreRefusedBeforeAnythingChanges) {
  SequenceCache a = open(), b = open();
  feed(a, std::span(tokens_).first(10), 10);
  const std::vector<int32_t> good = {1, 2}, low = {1, -1}, high = {static_cast<int32_t>(vocab())},
                             none;
  const auto refused = [&](std::vector<SequenceRows> step, std::string_view part) {
    bool launched = true;
    const auto result = runner_->run(step, &launched);
    EXPECT_FALSE(result.ok());
    EXPECT_EQ(result.status().code(), Code::kInvalidArgument);
    EXPECT_NE(result.status().message().find(part), std::string::npos) << result.status().message();
    EXPECT_FALSE(launched);
    EXPECT_EQ(a.length(), 10);
    EXPECT_EQ(a.reserved(), 0);
    EXPECT_EQ(b.reserved(), 0);
  };
  refused({}, "0 rows");
  refused({{&a, none}}, "no tokens");
  refused({{&a, good}, {&b, low}}, "token 1 has id -1");
  refused({{&a, good}, {&b, high}}, "token 0 has id " + std::to_string(vocab()));
  refused({{&a, good}, {&a, good}}, "the same one");
  const auto much = some_tokens(kContext - 9, vocab(), 1);
  refused({{&a, much}}, "the context holds 512");
  SequenceCache empty;
  refused({{&empty, good}}, "no place in the cache");
}

TEST_F(RunnerTest, FullPagesAreAnErrorAndLoseNothing) {
  make(2, 256);  // one span for both
  SequenceCache a = open(), b = open();
  const auto prompt = some_tokens(20, vocab(), 3);
  const Rows want = feed(a, prompt, 20);
  a.clear();
  Rows got = feed(a, std::span(prompt).first(10), 10);
  const std::vector<int32_t> token = {prompt[10]};
  const std::vector<SequenceRows> step = {{&a, token}, {&b, token}};
  const auto full = runner_->run(step);
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.status().code(), Code::kResourceExhausted);
  EXPECT_EQ(a.reserved(), 0);
  EXPECT_TRUE(cache_->check().ok()) << cache_->check().message();
  for (auto& row : feed(a, std::span(prompt).subspan(10), 10)) got.push_back(row);
  expect_same(got, want, "after the refusal");
}

TEST_F(RunnerTest, SteadyStateAllocatesNothing) {
  SequenceCache seq = open();
  feed(seq, std::span(tokens_).first(200), 100);
  feed(seq, std::span(tokens_).subspan(200, 20), 1);
  const int64_t growths = runner_->workspace().growths();
  const size_t bytes = runner_->workspace().bytes();
  feed(seq, std::span(tokens_).subspan(220, 60), 1);
  seq.clear();
  feed(seq, std::span(tokens_).first(200), 100);
  EXPECT_EQ(runner_->workspace().growths(), growths);
  EXPECT_EQ(runner_->workspace().bytes(), bytes);
}

// On a backend that records: decode steps of any number of sequences, before and after a warm-up, are those of
// the backend that does not.
TEST_F(RunnerTest, ReplayedStepsAreTheStep) {
  testing::RecordingBackend backend(*loaded_.backend);
  const auto made = small_runner(5, backend, backend.ops());
  ASSERT_TRUE(made);
  Runner& replaying = *made;

  const int64_t slots = cache_->free_slots(), pages = cache_->free_pages();
  const auto warm = replaying.warm_up();
  ASSERT_TRUE(warm.ok()) << warm.status().message();
  EXPECT_EQ(warm->steps, 3);  // 1, 2 and 4 sequences
  EXPECT_EQ(backend.recorded, 3);
  EXPECT_EQ(cache_->free_slots(), slots);
  EXPECT_EQ(cache_->free_pages(), pages);
  EXPECT_TRUE(cache_->check().ok()) << cache_->check().message();
  const int64_t growths = replaying.workspace_growths();

  std::vector<Rows> want(5), got(5);
  for (const bool plain : {true, false}) {
    Runner& runner = plain ? *runner_ : replaying;
    std::vector<SequenceCache> seqs;
    for (int i = 0; i < 5; ++i) seqs.push_back(open());
    // One sequence less from step to step, each at a position and with tokens of its own.
    for (const size_t n : {5u, 5u, 5u, 4u, 3u, 3u, 3u, 2u, 1u}) {
      std::vector<SequenceRows> step;
      for (size_t i = 0; i < n; ++i) {
        const auto at = static_cast<size_t>(seqs[i].length());
        const size_t rows = at == 0 ? 3 * i + 1 : 1;
        step.push_back({&seqs[i], std::span(tokens_).subspan(20 * i + at, rows), LogitRows::kLast});
      }
      const int64_t launched = backend.launched;
      const auto logits = runner.run(step);
      ASSERT_TRUE(logits.ok()) << logits.status().message();
      const bool warmed = !plain && (n == 4 || n == 2 || n == 1);
      EXPECT_GE(backend.launched - launched, warmed ? 1 : 0) << n;
      for (size_t i = 0; i < n; ++i) {
        append((plain ? want : got)[i], *logits, static_cast<int64_t>(i), 1);
        ASSERT_TRUE(seqs[i].commit(std::ssize(step[i].tokens)).ok());
      }
    }
  }
  for (size_t i = 0; i < 5; ++i) expect_same(got[i], want[i], "sequence " + std::to_string(i));
  EXPECT_EQ(backend.recorded, 5);  // 5 and 3 when they came again
  EXPECT_EQ(replaying.workspace_growths(), growths);
}

// What a host pays for at every step: one launch that has the copies of the batch and of its tokens in it,
// and one copy more for neighbouring rows that ask for logits.
TEST_F(RunnerTest, AReplayedStepIsOneLaunch) {
  testing::RecordingBackend backend(*loaded_.backend);
  const auto runner = small_runner(4, backend, backend.ops());
  ASSERT_TRUE(runner);
  ASSERT_TRUE(runner->warm_up().ok());
  std::vector<SequenceCache> seqs;
  for (int i = 0; i < 4; ++i) seqs.push_back(open());
  const SampleRow largest{.kind = SampleKind::kLargest};
  for (const size_t logits : {0u, 0u, 2u, 0u}) {
    std::vector<SequenceRows> step;
    for (SequenceCache& seq : seqs) {
      const auto at = static_cast<size_t>(seq.length());
      step.push_back({&seq, std::span(tokens_).subspan(at, 1), LogitRows::kLast, largest});
    }
    for (size_t i = 0; i < logits; ++i) step[i + 1].sample = {};
    const int64_t launched = backend.launched, copies = backend.copies;
    const auto result = runner->run(step);
    ASSERT_TRUE(result.ok()) << result.status().message();
    EXPECT_EQ(backend.launched - launched, 1);
    EXPECT_EQ(backend.copies - copies, logits > 0 ? 1 : 0);
    for (int64_t i = 0; i < 4; ++i) {
      const bool sampled = i == 0 || i > static_cast<int64_t>(logits);
      EXPECT_EQ(result->has_token(i), sampled) << i;
    }
    for (SequenceCache& seq : seqs) ASSERT_TRUE(seq.commit(1).ok());
  }
}

// Whoever puts something else into the op table gets steps that have it.
TEST_F(RunnerTest, StepsAreRecordedAnewWhenReplayIsTurnedOnAgain) {
  testing::RecordingBackend backend(*loaded_.backend);
  const auto made = small_runner(1, backend, backend.ops());
  ASSERT_TRUE(made);
  Runner& runner = *made;
  SequenceCache seq = open();
  const auto steps = [&](int n) {
    for (int i = 0; i < n; ++i) {
      const auto at = static_cast<size_t>(seq.length());
      const SequenceRows row{&seq, std::span(tokens_).subspan(at, 1)};
      const auto result = runner.run({&row, 1});
      ASSERT_TRUE(result.ok()) << result.status().message();
      ASSERT_TRUE(seq.commit(1).ok());
    }
  };
  steps(3);
  EXPECT_EQ(backend.recorded, 1);
  EXPECT_EQ(backend.launched, 2);
  runner.replay(false);
  steps(2);
  EXPECT_EQ(backend.launched, 2);
  runner.replay(true);
  steps(3);
  EXPECT_EQ(backend.recorded, 2);
  EXPECT_EQ(backend.launched, 4);
}

TEST_F(RunnerTest, NothingIsWarmedUpWhereNothingIsRecorded) {
  const auto warm = runner_->warm_up();
  ASSERT_TRUE(warm.ok());
  EXPECT_EQ(warm->steps, 0);
  EXPECT_EQ(runner_->workspace_bytes(), 0u);
}

// A model of published proportions, longer than its window and one HCA entry.
TEST_F(RunnerTest, ChunkingDoesNotChangeABitOfThePublishedModels) {
  const auto dirs = testing::golden_dirs();
  if (dirs.empty()) GTEST_SKIP() << "../shared/golden is not beside the checkout";
  for (const std::string& dir : dirs) {
    load(dir);
    if (HasFatalFailure()) return;
    expect_chunking_is_neutral(std::span(tokens_).first(140), {37});
  }
}

}  // namespace
}  // namespace dsv4
