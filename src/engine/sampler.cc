#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/str.h"
#include "ops/sampling.h"

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

// NaN and +inf, or nothing above -inf, are the fault of weights or backend.
Result<float> largest_logit(std::span<const float> logits, int64_t position) {
  const LogitScan found = scan_logits(logits);
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
  if (scan_logits(logits).largest == kNever) {
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

SampleRow sample_row(const SamplingParams& params, uint64_t seed, int64_t position) {
  const float inverse = 1.0f / params.temperature;
  // A temperature so small that its inverse is no number leaves one token.
  const bool draws = params.temperature > 0 && params.top_k != 1 && std::isfinite(inverse);
  return {.seed = seed,
          .position = position,
          .kind = draws ? SampleKind::kDraw : SampleKind::kLargest,
          .inverse_temperature = draws ? inverse : 1.0f,
          .top_k = params.top_k,
          .top_p = params.top_p,
          .min_p = params.min_p};
}

bool needs_logits(const SamplingParams& p) {
  return has_penalties(p) || !p.logit_bias.empty() || p.logprobs >= 0;
}

bool has_penalties(const SamplingParams& p) {
  return p.repetition_penalty != 1.0f || p.frequency_penalty != 0.0f || p.presence_penalty != 0.0f;
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
    largest = scan_logits(adjusted_).largest;
  }

  SampledToken out;
  SampleRow row = sample_row(params, seed, position);
  // Penalties can push a sum past the float range; what they leave is not a distribution then.
  if (!std::isfinite(largest)) row.kind = SampleKind::kLargest;
  scratch_.resize(logits.size());
  out.token = sample_token(changed ? adjusted_ : logits, largest, row, scratch_);
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

}  // namespace dsv4
