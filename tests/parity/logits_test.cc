// Logits of the whole model, bit for bit: a sequence alone, the same in a batch of 64, and that batch once more.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "api/loaded_model.h"
#include "bench/cases.h"
#include "engine/runner.h"
#include "machine.h"

namespace dsv4::parity {
namespace {

constexpr size_t kSequences = 64, kSteps = 12;
constexpr int64_t kContext = 256;

using Logits = std::vector<std::vector<float>>;  // of every step, [sequences, vocab]

class Batch : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const char* dir = std::getenv("DSV4_TEST_MODEL");
    auto loaded = load_model(dir ? dir : "models/demo", GetParam(), nullptr);
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    loaded_ = std::move(loaded).value();
    const Model& model = *loaded_.model;
    bench::Rng rng(5);
    for (size_t i = 0; i < kSequences; ++i) {
      tokens_.emplace_back(1 + 3 * i + kSteps);  // a prompt of 1, 4, 7, ... tokens
      for (int32_t& t : tokens_.back()) t = static_cast<int32_t>(rng.below(model.config.vocab_size));
    }
    auto cache = KvCache::make(make_cache_spec(model.config, model.plan),
                               {.max_sequences = std::ssize(tokens_), .max_tokens = std::ssize(tokens_) * kContext, .max_rollback = 0}, *loaded_.backend);
    ASSERT_TRUE(cache.ok()) << cache.status().message();
    cache_ = std::move(cache).value();
    auto runner = Runner::make(model, *cache_, {.max_rows = kContext, .max_sequences = std::ssize(tokens_), .max_logit_rows = std::ssize(tokens_), .context = kContext},
                               *loaded_.backend, loaded_.backend->ops());
    ASSERT_TRUE(runner.ok()) << runner.status().message();
    runner_ = std::move(runner).value();
  }

  // Prompts of these sequences one after the other, then kSteps steps with a token of each.
  Logits decode(size_t first, size_t n) {
    Logits all;
    std::vector<SequenceCache> open;
    for (size_t i = first; i < first + n; ++i) {
      auto seq = cache_->open();
      EXPECT_TRUE(seq.ok());
      open.push_back(std::move(seq).value());
      step(all, {{&open.back(), std::span<const int32_t>(tokens_[i]).first(tokens_[i].size() - kSteps), LogitRows::kLast}});
    }
    for (size_t s = 0; s < kSteps; ++s) {
      std::vector<SequenceRows> rows;
      for (size_t i = 0; i < n; ++i) {
        const std::vector<int32_t>& t = tokens_[first + i];
        rows.push_back({&open[i], std::span(t).subspan(t.size() - kSteps + s, 1), LogitRows::kLast});
      }
      step(all, rows);
    }
    return all;
  }

  void step(Logits& all, const std::vector<SequenceRows>& rows) {
    const auto result = runner_->run(rows);
    ASSERT_TRUE(result.ok()) << result.status().message();
    ASSERT_EQ(result->rows, std::ssize(rows));
    all.emplace_back(result->data, result->data + result->rows * result->vocab);
    for (const SequenceRows& r : rows) ASSERT_TRUE(r.cache->commit(std::ssize(r.tokens)).ok());
  }

  LoadedModel loaded_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Runner> runner_;
  std::vector<std::vector<int32_t>> tokens_;
};

TEST_P(Batch, LogitsAreThoseOfASequenceAlone) {
  const Logits together = decode(0, kSequences);
  ASSERT_FALSE(HasFailure());
  EXPECT_TRUE(together == decode(0, kSequences)) << "the same batch once more";
  const auto vocab = static_cast<size_t>(loaded_.model->config.vocab_size);
  for (size_t i = 0; i < kSequences; ++i) {
    const Logits alone = decode(i, 1);
    ASSERT_FALSE(HasFailure());
    for (size_t s = 0; s < kSteps; ++s) {
      const float* row = together[kSequences + s].data() + i * vocab;
      ASSERT_TRUE(std::any_of(row, row + vocab, [](float x) { return x != 0.0f; }));
      ASSERT_EQ(std::memcmp(row, alone[1 + s].data(), vocab * sizeof(float)), 0) << "sequence " << i << ", step " << s;
    }
  }
}

// `reference` computes row by row, and takes minutes for this.
std::vector<std::string> fast_backends() {
  std::vector<std::string> names = backends_under_test();
  std::erase(names, "reference");
  return names;
}
INSTANTIATE_TEST_SUITE_P(Backends, Batch, testing::ValuesIn(fast_backends()), [](const auto& param) { return param.param; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Batch);

}  // namespace
}  // namespace dsv4::parity
