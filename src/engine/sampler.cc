#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/str.h"
#include "engine/philox.h"

namespace dsv4 {
namespace {

Status bad(std::string_view field, double value, std::string_view expected) {
  return Status(Code::kInvalidArgument,
                cat("sampling: ", field, " ", value, ": expected ", expected));
}

// Log of the sum of e^l, in double and in the order of ids.
double log_sum_exp(std::span<const float> logits, float largest) {
  double sum = 0;
  for (const float l : logits) sum += std::exp(static_cast<double>(l) - largest);
  return largest + std::log(sum);
}

constexpr size_t kBlock = 64;  // rows of a fixed length become vector code without being asked

struct Scan {
  float largest = -std::numeric_limits<float>::infinity();
  bool sound = true;  // no NaN, no +inf
};

Scan scan(std::span<const float> logits) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  float largest[kBlock];
  int32_t unsound[kBlock] = {};
  std::fill_n(largest, kBlock, -kInfinity);
  size_t at = 0;
  for (; at + kBlock <= logits.size(); at += kBlock) {
    const float* const x = logits.data() + at;
    for (size_t i = 0; i < kBlock; ++i) {
      largest[i] = x[i] > largest[i] ? x[i] : largest[i];
      unsound[i] |= x[i] < kInfinity ? 0 : 1;
    }
  }
  for (size_t i = 0; at < logits.size(); ++i, ++at) {
    largest[i] = std::max(largest[i], logits[at]);
    unsound[i] |= logits[at] < kInfinity ? 0 : 1;
  }
  Scan result;
  for (size_t i = 0; i < kBlock; ++i) {
    result.largest = std::max(result.largest, largest[i]);
    result.sound = result.sound && unsound[i] == 0;
  }
  return result;
}

// NaN and +inf, or nothing above -inf, are the fault of weights or backend.
Result<float> largest_logit(std::span<const float> logits, int64_t position) {
  const Scan found = scan(logits);
  if (!found.sound) {
    const auto bad = std::find_if(logits.begin(), logits.end(), [](float l) {
      return !(l < std::numeric_limits<float>::infinity());
    });
    return Status(Code::kInternal,
                  cat("sampling: logit of token ", bad - logits.begin(), " at position ", position,
                      " is ", *bad,
                      ": expected a number; the weights or the backend are broken, `dsv4 verify` "
                      "tells which"));
  }
  if (!std::isfinite(found.largest)) {
    return Status(Code::kInternal, cat("sampling: no finite logit among ", logits.size(),
                                       " at position ", position));
  }
  return found.largest;
}

// e^x for x <= 0, to 2e-7 of it and 0 below e^-87: the same bits on every machine, and vector code
// in a loop. Logits are FP32 sums and no better.
float exp_negative(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  const float y = x > -87.0f ? x : -87.0f;
  const float n = (y * kLog2E + kRound) - kRound;
  const float r = (y - n * kLn2High) - n * kLn2Low;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const float power = std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  return x > -87.0f ? p * power : 0.0f;
}

// -inf for every token without a bit. Most masks allow or forbid 64 neighbours at once.
Status apply_mask(std::span<const uint64_t> allowed, int64_t position, std::span<float> logits) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const size_t words = (logits.size() + 63) / 64;
  if (allowed.size() < words) {
    return Status(Code::kInternal, cat("sampling: the constraint's mask has ", allowed.size(),
                                       " words, expected ", words));
  }
  for (size_t w = 0; w < words; ++w) {
    const size_t first = w * 64, n = std::min<size_t>(64, logits.size() - first);
    if (allowed[w] == ~uint64_t{0}) continue;
    if (allowed[w] == 0) {
      std::fill_n(logits.data() + first, n, kNever);
      continue;
    }
    float* const x = logits.data() + first;
    for (size_t i = 0; i < n; ++i) x[i] = (allowed[w] >> i & 1) != 0 ? x[i] : kNever;
  }
  if (scan(logits).largest == kNever) {
    return Status(Code::kInvalidArgument,
                  cat("sampling: the constraint allows no token at position ", position,
                      "; its grammar cannot be continued"));
  }
  return {};
}

}  // namespace

Status validate_sampling(const SamplingParams& p, int64_t vocab_size) {
  // Comparisons are written so that NaN fails them.
  if (!(p.temperature >= 0) || !std::isfinite(p.temperature)) {
    return bad("temperature", p.temperature, "a number >= 0 (0 = the most likely token)");
  }
  if (p.top_k < 0) return bad("top_k", p.top_k, ">= 0 (0 = off)");
  if (!(p.top_p >= 0 && p.top_p <= 1)) return bad("top_p", p.top_p, "0..1 (1 = off)");
  if (!(p.min_p >= 0 && p.min_p <= 1)) return bad("min_p", p.min_p, "0..1 (0 = off)");
  if (!(p.repetition_penalty > 0) || !std::isfinite(p.repetition_penalty)) {
    return bad("repetition_penalty", p.repetition_penalty, "a number > 0 (1 = off)");
  }
  if (!std::isfinite(p.presence_penalty)) {
    return bad("presence_penalty", p.presence_penalty, "a finite number (0 = off)");
  }
  if (!std::isfinite(p.frequency_penalty)) {
    return bad("frequency_penalty", p.frequency_penalty, "a finite number (0 = off)");
  }
  for (const auto& [id, bias] : p.logit_bias) {
    if (id < 0 || id >= vocab_size) {
      return bad("logit_bias of token", id, cat("an id of 0..", vocab_size - 1));
    }
    if (!std::isfinite(bias))
      return bad(cat("logit_bias of token ", id, ":"), bias, "a finite bias");
  }
  if (p.logprobs < -1 || p.logprobs > vocab_size) {
    return bad("logprobs", p.logprobs, cat("0..", vocab_size, ", or -1 for none"));
  }
  return {};
}

Result<SampledToken> Sampler::sample(std::span<const float> logits, const SamplingParams& params,
                                     const TokenHistory& history, uint64_t seed, int64_t position,
                                     std::span<const uint64_t> allowed) {
  DSV4_ASSIGN(const float raw_largest, largest_logit(logits, position));
  const bool repeats = params.repetition_penalty != 1.0f;
  const bool counts = params.frequency_penalty != 0.0f || params.presence_penalty != 0.0f;
  const bool changed = repeats || counts || !params.logit_bias.empty() || !allowed.empty();
  float largest = raw_largest;
  if (changed) {
    adjusted_.assign(logits.begin(), logits.end());
    const auto at = [this](int32_t id) -> float& { return adjusted_[static_cast<size_t>(id)]; };
    if (repeats) {
      for (const int32_t id : history.seen()) {
        float& l = at(id);
        l = l > 0 ? l / params.repetition_penalty : l * params.repetition_penalty;
      }
    }
    if (counts) {
      for (const auto& [id, count] : history.generated()) {
        at(id) -= params.frequency_penalty * static_cast<float>(count) + params.presence_penalty;
      }
    }
    for (const auto& [id, bias] : params.logit_bias) at(id) += bias;
    if (!allowed.empty()) DSV4_TRY(apply_mask(allowed, position, adjusted_));
    largest = scan(adjusted_).largest;
  }

  SampledToken out;
  out.token = draw(changed ? adjusted_ : logits, largest, params, seed, position);
  add_logprobs(logits, raw_largest, params.logprobs, out);
  return out;
}

Result<SampledToken> Sampler::score(std::span<const float> logits, int32_t token, int32_t logprobs,
                                    int64_t position) {
  DSV4_ASSIGN(const float largest, largest_logit(logits, position));
  SampledToken out;
  out.token = token;
  add_logprobs(logits, largest, logprobs, out);
  return out;
}

void Sampler::add_logprobs(std::span<const float> logits, float largest, int32_t logprobs,
                           SampledToken& out) {
  if (logprobs < 0) return;
  const double norm = log_sum_exp(logits, largest);
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(static_cast<double>(logits[static_cast<size_t>(id)]) - norm);
  };
  out.logprob = logprob(out.token);
  if (logprobs == 0) return;
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    candidates_.push_back({static_cast<int32_t>(i), logits[i]});
  }
  const auto n = std::min<std::ptrdiff_t>(logprobs, std::ssize(candidates_));
  std::partial_sort(candidates_.begin(), candidates_.begin() + n, candidates_.end(),
                    [](const Candidate& a, const Candidate& b) {
                      return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
                    });
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const int32_t id = candidates_[static_cast<size_t>(i)].id;
    out.top.push_back({id, logprob(id)});
  }
}

int32_t Sampler::draw(std::span<const float> logits, float largest, const SamplingParams& params,
                      uint64_t seed, int64_t position) {
  // Penalties can push a sum past the float range; what they leave is not a distribution then.
  if (params.temperature == 0 || params.top_k == 1 || !std::isfinite(largest)) {
    return static_cast<int32_t>(std::find(logits.begin(), logits.end(), largest) - logits.begin());
  }
  const double uniform = uniform_at(seed, static_cast<uint64_t>(position));
  if (params.top_k == 0 && params.top_p >= 1 && params.min_p == 0) {
    return draw_of_all(logits, largest, params.temperature, uniform);
  }
  truncate(logits, largest, params);
  const double scale = 1.0 / params.temperature;
  weights_.clear();
  double total = 0;
  for (const Candidate& c : candidates_) {
    weights_.push_back(
        std::exp((static_cast<double>(c.logit) - static_cast<double>(largest)) * scale));
    total += weights_.back();
  }
  const double target = uniform * total;
  double sum = 0;
  int32_t last = candidates_[0].id;
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (weights_[i] == 0) continue;
    sum += weights_[i];
    last = candidates_[i].id;
    if (target < sum) break;
  }
  return last;
}

int32_t Sampler::draw_of_all(std::span<const float> logits, float largest, float temperature,
                             double uniform) {
  const float scale = 1.0f / temperature;
  // Sums of blocks, in a fixed order within and among them.
  const auto weigh = [&](const float* x, size_t n, float* weights) {
    double sums[8] = {};
    for (size_t i = 0; i < n; ++i) weights[i] = exp_negative((x[i] - largest) * scale);
    for (size_t i = 0; i < n; ++i) sums[i % 8] += static_cast<double>(weights[i]);
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
           ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  };
  float weights[kBlock];
  weights_.clear();
  double total = 0;
  for (size_t at = 0; at < logits.size(); at += kBlock) {
    const size_t n = std::min(kBlock, logits.size() - at);
    const double sum = n == kBlock ? weigh(logits.data() + at, kBlock, weights)
                                   : weigh(logits.data() + at, n, weights);
    weights_.push_back(sum);
    total += sum;
  }
  const double target = uniform * total;
  double sum = 0;
  size_t last =
      0;  // the block that holds the target; rounding may leave it to the last one with any
  for (size_t block = 0; block < weights_.size(); ++block) {
    if (weights_[block] == 0) continue;
    last = block;
    if (target < sum + weights_[block]) break;
    sum += weights_[block];
  }
  const size_t first = last * kBlock, n = std::min(kBlock, logits.size() - first);
  weigh(logits.data() + first, n, weights);
  size_t chosen = first;
  for (size_t i = 0; i < n; ++i) {
    if (weights[i] == 0) continue;
    chosen = first + i;
    sum += static_cast<double>(weights[i]);
    if (target < sum) break;
  }
  return static_cast<int32_t>(chosen);
}

void Sampler::truncate(std::span<const float> logits, float largest, const SamplingParams& params) {
  const double scale = 1.0 / params.temperature;
  const auto weight = [&](float logit) {
    return std::exp((static_cast<double>(logit) - static_cast<double>(largest)) * scale);
  };
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    candidates_.push_back({static_cast<int32_t>(i), logits[i]});
  }
  const auto by_id = [](const Candidate& a, const Candidate& b) { return a.id < b.id; };
  if (params.top_k > 0 && params.top_k < std::ssize(candidates_)) {
    std::nth_element(candidates_.begin(), candidates_.begin() + (params.top_k - 1),
                     candidates_.end(), before);
    candidates_.resize(static_cast<size_t>(params.top_k));
    std::sort(candidates_.begin(), candidates_.end(), by_id);
  }
  if (params.top_p < 1) {
    double total = 0;  // summed by id
    for (const Candidate& c : candidates_) total += weight(c.logit);
    const double target = total * params.top_p;
    // Few candidates carry most of the mass: sort no more than it takes.
    size_t sorted = 0, kept = 0;
    double sum = 0;
    while (kept < candidates_.size() && (kept == 0 || sum < target)) {
      if (kept == sorted) {
        const size_t next = std::min(candidates_.size(), std::max<size_t>(64, sorted * 8));
        const auto from = candidates_.begin() + static_cast<std::ptrdiff_t>(sorted);
        const auto to = candidates_.begin() + static_cast<std::ptrdiff_t>(next);
        std::partial_sort(from, to, candidates_.end(), before);
        sorted = next;
      }
      sum += weight(candidates_[kept++].logit);
    }
    candidates_.resize(kept);
    std::sort(candidates_.begin(), candidates_.end(), by_id);
  }
  if (params.min_p > 0) {
    std::erase_if(candidates_, [&](const Candidate& c) { return weight(c.logit) < params.min_p; });
  }
}

}  // namespace dsv4
