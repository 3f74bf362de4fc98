#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "ops/philox.h"
#include "ops/sampling.h"

namespace dsv4 {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

int32_t pick(const std::vector<float>& logits, const SamplingParams& params, uint64_t seed = 1,
             int64_t position = 0, const TokenHistory& history = {}) {
  Sampler sampler;
  auto token = sampler.sample(logits, params, history, seed, position);
  EXPECT_TRUE(token.ok()) << token.status().message();
  return token.ok() ? token->token : -1;
}

// Tokens that can come out, over many draws.
std::set<int32_t> support(const std::vector<float>& logits, const SamplingParams& params,
                          const TokenHistory& history = {}) {
  std::set<int32_t> seen;
  for (int64_t i = 0; i < 2000; ++i) seen.insert(pick(logits, params, 3, i, history));
  return seen;
}

// Pearson's statistic of `draws` draws against exact probabilities.
double chi_square(const std::vector<float>& logits, const SamplingParams& params,
                  const std::vector<double>& p, uint64_t seed, int64_t draws) {
  std::vector<int64_t> count(p.size(), 0);
  Sampler sampler;
  for (int64_t i = 0; i < draws; ++i) {
    auto token = sampler.sample(logits, params, {}, seed, i);
    EXPECT_TRUE(token.ok());
    ++count[static_cast<size_t>(token->token)];
  }
  double x = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double expected = p[i] * static_cast<double>(draws);
    if (expected == 0) {
      EXPECT_EQ(count[i], 0) << "token " << i << " has probability 0";
      continue;
    }
    const double d = static_cast<double>(count[i]) - expected;
    x += d * d / expected;
  }
  return x;
}

std::vector<double> softmax(const std::vector<float>& logits, double temperature) {
  std::vector<double> p;
  double sum = 0;
  for (const float l : logits)
    sum += p.emplace_back(std::exp(static_cast<double>(l) / temperature));
  for (double& x : p) x /= sum;
  return p;
}

TEST(Philox, MeetsThePublishedVectors) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Sampler, TemperatureZeroIsTheLargestWithTheLowestIdOnTies) {
  EXPECT_EQ(pick({0, 3, 1, 3}, {.temperature = 0}), 1);
  EXPECT_EQ(pick({-kInf, -5, -kInf}, {.temperature = 0}), 1);
  EXPECT_EQ(pick({2, 2, 2}, {.temperature = 0}), 0);
}

// Bounds: the 0.1% quantile of chi-square with 7 degrees of freedom is 24.3; seeds are fixed.
TEST(Sampler, DrawsFollowTheDistribution) {
  const std::vector<float> logits = {0.3f, -1.0f, 2.0f, 0.0f, 1.0f, -2.0f, 0.5f, 0.5f};
  for (const float temperature : {1.0f, 0.5f, 2.0f}) {
    for (const uint64_t seed : {1u, 42u, 0xffffffffu}) {
      EXPECT_LT(chi_square(logits, {.temperature = temperature},
                           softmax(logits, static_cast<double>(temperature)), seed, 50000),
                24.3)
          << "temperature " << temperature << ", seed " << seed;
    }
  }
}

TEST(Sampler, TruncatedDrawsAreRenormalised) {
  // Probabilities .4 .3 .2 .1
  const std::vector<float> logits = {std::log(0.2f), std::log(0.4f), std::log(0.1f),
                                     std::log(0.3f)};
  const int64_t n = 50000;
  EXPECT_LT(chi_square(logits, {.top_k = 2}, {0, 4 / 7.0, 0, 3 / 7.0}, 5, n), 10.8);
  EXPECT_LT(chi_square(logits, {.top_p = 0.75f}, {2 / 9.0, 4 / 9.0, 0, 3 / 9.0}, 5, n), 13.8);
  EXPECT_LT(chi_square(logits, {.min_p = 0.6f}, {0, 4 / 7.0, 0, 3 / 7.0}, 5, n), 10.8);
  // top_p looks at what top_k left: .4/.7 = .571 reaches .5 alone
  EXPECT_LT(chi_square(logits, {.top_k = 2, .top_p = 0.5f}, {0, 1, 0, 0}, 5, 1000), 1e-9);
}

TEST(Sampler, TheEdgesOfEveryTruncation) {
  const std::vector<float> logits = {1, 4, 2, 4, 3};
  using Set = std::set<int32_t>;
  EXPECT_EQ(support(logits, {.top_k = 1}), (Set{1}));
  EXPECT_EQ(support(logits, {.top_k = 2}), (Set{1, 3}));
  EXPECT_EQ(support(logits, {.top_k = 5}), (Set{0, 1, 2, 3, 4}));
  EXPECT_EQ(support(logits, {.top_k = 100}), (Set{0, 1, 2, 3, 4}));
  EXPECT_EQ(support(logits, {.top_p = 0.0f}), (Set{1}));
  EXPECT_EQ(support(logits, {.top_p = 1.0f}), (Set{0, 1, 2, 3, 4}));
  EXPECT_EQ(support(logits, {.min_p = 1.0f}), (Set{1, 3}));
  EXPECT_EQ(support(logits, {.min_p = 0.0f}), (Set{0, 1, 2, 3, 4}));
  // Ties at the border go to the lowest ids.
  EXPECT_EQ(support({5, 5, 5, 5}, {.top_k = 2}), (Set{0, 1}));
  EXPECT_EQ(support({5, 5, 5, 5}, {.top_p = 0.5f}), (Set{0, 1}));
  EXPECT_EQ(support({5, 5, 5, 5}, {.top_p = 0.51f}), (Set{0, 1, 2}));
  EXPECT_EQ(support({0, -kInf, 0, -kInf}, {}), (Set{0, 2}));
}

TEST(Sampler, TopPSelectsTheSameOfAWideDistributionAsAFullSort) {
  // Wide enough that more than one batch of sorting is needed.
  std::vector<float> logits;
  for (int i = 0; i < 3000; ++i) logits.push_back(static_cast<float>((i * 7919) % 3000) * -0.001f);
  std::vector<std::pair<double, int32_t>> all;
  const std::vector<double> p = softmax(logits, 1.0);
  for (int32_t i = 0; i < 3000; ++i) all.push_back({-p[static_cast<size_t>(i)], i});
  std::sort(all.begin(), all.end());
  std::set<int32_t> allowed;
  double sum = 0;
  for (size_t i = 0; i < all.size() && sum < 0.6; ++i) {
    sum -= all[i].first;
    allowed.insert(all[i].second);
  }
  std::set<int32_t> seen = support(logits, {.top_p = 0.6f});
  for (const int32_t id : seen) EXPECT_TRUE(allowed.count(id)) << id;
  EXPECT_GT(seen.size(), 500u);
}

// Steps 5 to 8 by their words: all that can be drawn in order, what is cut cut off.
int32_t draw_by_sorting(const std::vector<float>& logits, const SamplingParams& p, uint64_t seed,
                        int64_t position) {
  struct Token {
    float logit, relative;
    int32_t id;
    uint64_t weight() const { return sample_weight(relative); }
  };
  const float largest = *std::max_element(logits.begin(), logits.end());
  std::vector<Token> tokens;
  for (size_t i = 0; i < logits.size(); ++i) {
    const float relative = relative_weight(logits[i], largest, 1.0f / p.temperature);
    tokens.push_back({logits[i], relative, static_cast<int32_t>(i)});
  }
  std::stable_sort(tokens.begin(), tokens.end(),
                   [](const Token& a, const Token& b) { return a.logit > b.logit; });
  if (p.top_k > 0) tokens.resize(std::min(tokens.size(), static_cast<size_t>(p.top_k)));
  const auto total = [&] {
    uint64_t sum = 0;
    for (const Token& t : tokens) sum += t.weight();
    return sum;
  };
  if (p.top_p < 1) {
    const double target = std::ceil(static_cast<double>(total()) * static_cast<double>(p.top_p));
    size_t n = 0;
    for (uint64_t sum = 0; n == 0 || static_cast<double>(sum) < target; ++n)
      sum += tokens[n].weight();
    tokens.resize(n);
  }
  std::erase_if(tokens, [&](const Token& t) { return t.relative < p.min_p; });
  std::sort(tokens.begin(), tokens.end(),
            [](const Token& a, const Token& b) { return a.id < b.id; });
  uint64_t target = sample_target(seed, position, total());
  for (const Token& t : tokens) {
    if (target < t.weight()) return t.id;
    target -= t.weight();
  }
  return -1;
}

TEST(Sampler, EveryCutAgreesWithAFullSort) {
  std::vector<float> wide, ties, equal(700, 1.5f);
  for (uint32_t i = 0; i < 5000; ++i) {
    const auto r = philox4x32({i, 0, 0, 0}, {7, 7});
    wide.push_back(static_cast<float>(r[0] % 60000) * 0.0005f - 15.0f);
    ties.push_back(static_cast<float>(r[1] % 9));
  }
  wide[17] = -kInf;
  int64_t position = 0;
  for (const auto* logits : {&wide, &ties, &equal}) {
    for (const float temperature : {0.01f, 0.3f, 1.0f, 2.0f, 100.0f}) {
      for (const int32_t top_k : {0, 2, 50, 699, 5000}) {
        for (const float top_p : {0.0f, 0.1f, 0.95f, 0.9999999f, 1.0f}) {
          for (const float min_p : {0.0f, 0.02f, 1.0f}) {
            const SamplingParams p{
                .temperature = temperature, .top_k = top_k, .top_p = top_p, .min_p = min_p};
            ++position;
            ASSERT_EQ(pick(*logits, p, 11, position), draw_by_sorting(*logits, p, 11, position))
                << temperature << " " << top_k << " " << top_p << " " << min_p;
          }
        }
      }
    }
  }
}

TEST(Sampler, ATemperatureAsGoodAsZeroIsZero) {
  EXPECT_EQ(pick({1, 3, 2}, {.temperature = 1e-40f}), 1);
  EXPECT_EQ(pick({1, 3, 2}, {.temperature = 1e-30f}), 1);
}

TEST(Sampler, PenaltiesFollowTheirDefinitions) {
  TokenHistory history;
  history.add_prompt(std::vector<int32_t>{0});
  history.add_generated(1);
  history.add_generated(1);
  const SamplingParams greedy{.temperature = 0};
  SamplingParams p = greedy;

  p.repetition_penalty = 2;  // positive halves, negative doubles, for prompt and answer
  EXPECT_EQ(pick({4, 4, 2.5f}, p, 1, 0, history), 2);
  EXPECT_EQ(pick({-2, -2, -3.9f}, p, 1, 0, history), 2);
  EXPECT_EQ(pick({-2, -2, -4.1f}, p, 1, 0, history), 0);

  p = greedy;
  p.presence_penalty = 1;  // answer only, once
  EXPECT_EQ(pick({3, 3.9f, 0}, p, 1, 0, history), 0);
  EXPECT_EQ(pick({3, 4.1f, 0}, p, 1, 0, history), 1);
  p.presence_penalty = -1;
  EXPECT_EQ(pick({3, 2.1f, 0}, p, 1, 0, history), 1);

  p = greedy;
  p.frequency_penalty = 1;  // answer only, per occurrence
  EXPECT_EQ(pick({3, 4.9f, 0}, p, 1, 0, history), 0);
  EXPECT_EQ(pick({3, 5.1f, 0}, p, 1, 0, history), 1);

  p = greedy;
  p.logit_bias = {{2, 100.0f}};
  EXPECT_EQ(pick({3, 5, -50}, p), 2);
  p.logit_bias = {{1, -100.0f}};
  EXPECT_EQ(pick({3, 5, -50}, p), 0);
  p.repetition_penalty = 10;  // the bias is added after it and stays whole
  p.logit_bias = {{0, 3.0f}};
  EXPECT_EQ(pick({1, -1, 3}, p, 1, 0, history), 0);
}

TEST(Sampler, TheDrawDependsOnSeedAndPositionAlone) {
  const std::vector<float> logits(1000, 0.0f);
  std::vector<int32_t> first, second;
  for (int64_t i = 0; i < 50; ++i) first.push_back(pick(logits, {}, 9, i));
  for (int64_t i = 49; i >= 0; --i) second.insert(second.begin(), pick(logits, {}, 9, i));
  EXPECT_EQ(first, second);
  std::vector<int32_t> other;
  for (int64_t i = 0; i < 50; ++i) other.push_back(pick(logits, {}, 10, i));
  EXPECT_NE(first, other);
  EXPECT_GT(std::set<int32_t>(first.begin(), first.end()).size(), 40u);
}

TEST(Sampler, LogprobsAreOfTheRawLogits) {
  const std::vector<float> logits = {std::log(0.2f), std::log(0.5f), std::log(0.15f),
                                     std::log(0.15f)};
  Sampler sampler;
  SamplingParams p{.temperature = 0, .logit_bias = {{0, 50.0f}}, .logprobs = 3};
  auto token = sampler.sample(logits, p, {}, 1, 0);
  ASSERT_TRUE(token.ok());
  EXPECT_EQ(token->token, 0);
  EXPECT_NEAR(token->logprob, std::log(0.2), 1e-6);
  ASSERT_EQ(token->top.size(), 3u);
  EXPECT_EQ(token->top[0].token, 1);
  EXPECT_NEAR(token->top[0].logprob, std::log(0.5), 1e-6);
  EXPECT_EQ(token->top[1].token, 0);
  EXPECT_EQ(token->top[2].token, 2);  // the lower id of two equals
  p.logprobs = 0;
  token = sampler.sample(logits, p, {}, 1, 0);
  ASSERT_TRUE(token.ok());
  EXPECT_TRUE(token->top.empty());
  EXPECT_NEAR(token->logprob, std::log(0.2), 1e-6);
}

TEST(Sampler, BrokenLogitsAreAnErrorWithTheirPlace) {
  Sampler sampler;
  const auto error = [&](std::vector<float> logits) {
    auto token = sampler.sample(logits, {}, {}, 1, 17);
    EXPECT_FALSE(token.ok());
    return token.ok() ? std::string() : token.status().message();
  };
  EXPECT_NE(error({0, std::nanf(""), 1}).find("token 1 at position 17"), std::string::npos);
  EXPECT_NE(error({0, 1, kInf}).find("token 2"), std::string::npos);
  EXPECT_NE(error({-kInf, -kInf}).find("no finite logit"), std::string::npos);
  EXPECT_NE(error({}).find("no finite logit"), std::string::npos);
}

TEST(Sampler, ParametersWithoutMeaningAreNamed) {
  const auto error = [](const SamplingParams& p) {
    const Status status = validate_sampling(p, 100);
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    return status.message();
  };
  EXPECT_TRUE(validate_sampling({}, 100).ok());
  EXPECT_TRUE(validate_sampling(
                  {.temperature = 0, .top_k = 5, .logit_bias = {{99, -1}}, .logprobs = 20}, 100)
                  .ok());
  EXPECT_NE(error({.temperature = -1}).find("temperature"), std::string::npos);
  EXPECT_NE(error({.temperature = std::nanf("")}).find("temperature"), std::string::npos);
  EXPECT_NE(error({.top_k = -2}).find("top_k"), std::string::npos);
  EXPECT_NE(error({.top_p = 1.5f}).find("top_p"), std::string::npos);
  EXPECT_NE(error({.min_p = -0.1f}).find("min_p"), std::string::npos);
  EXPECT_NE(error({.repetition_penalty = 0}).find("repetition_penalty"), std::string::npos);
  EXPECT_NE(error({.presence_penalty = kInf}).find("presence_penalty"), std::string::npos);
  EXPECT_NE(error({.frequency_penalty = kInf}).find("frequency_penalty"), std::string::npos);
  EXPECT_NE(error({.logit_bias = {{100, 0.0f}}}).find("100"), std::string::npos);
  EXPECT_NE(error({.logprobs = -2}).find("logprobs"), std::string::npos);
}

}  // namespace
}  // namespace dsv4
