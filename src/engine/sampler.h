// Sampler: a row of logits -> a token. The order of operations is documented at SamplingParams.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "dsv4/status.h"
#include "dsv4/types.h"
#include "ops/args/sample.h"

namespace dsv4 {

// Rejects what has no meaning, naming field and value.
Status validate_sampling(const SamplingParams& params, int64_t vocab_size);

// Steps 4 to 8 of the order at SamplingParams, as the op `sample` takes them. `params` must have
// passed validate_sampling.
SampleRow sample_row(const SamplingParams& params, uint64_t seed, int64_t position);
// Whether that is not all there is to do: penalties, bias or log probabilities are asked for.
bool needs_logits(const SamplingParams& params);
// Repetition, frequency or presence: what looks at the history.
bool has_penalties(const SamplingParams& params);

// What the penalties look at.
class TokenHistory {
 public:
  void add_prompt(std::span<const int32_t> tokens) { seen_.insert(tokens.begin(), tokens.end()); }
  void add_generated(int32_t token) {
    seen_.insert(token);
    ++generated_[token];
  }
  const std::unordered_set<int32_t>& seen() const { return seen_; }  // prompt and answer
  const std::unordered_map<int32_t, int64_t>& generated() const { return generated_; }

 private:
  std::unordered_set<int32_t> seen_;
  std::unordered_map<int32_t, int64_t> generated_;
};

struct SampledToken {
  int32_t token = 0;
  float logprob = 0;              // set when params.logprobs >= 0
  std::vector<TokenLogprob> top;  // the params.logprobs best, lowest id first on ties
};

class Sampler {
 public:
  // `logits` [V] of the row before `position`. NaN, +inf or nothing above -inf is an error; -inf is
  // a token that cannot be drawn. `params` must have passed validate_sampling.
  // Of the tokens that `allowed` has a bit for, where it is not empty (see TokenConstraint).
  Result<SampledToken> sample(std::span<const float> logits, const SamplingParams& params,
                              const TokenHistory& history, uint64_t seed, int64_t position,
                              std::span<const uint64_t> allowed = {});
  // A token that was not drawn: its log probability and the best ones beside it, for logprobs >= 0.
  Result<SampledToken> score(std::span<const float> logits, int32_t token, int32_t logprobs,
                             int64_t position);

 private:
  struct Candidate {
    int32_t id;
    float logit;
  };

  void add_logprobs(std::span<const float> logits, float largest, int32_t logprobs,
                    SampledToken& out);
  // Kept between calls so that a step allocates nothing.
  std::vector<float> adjusted_;
  std::vector<Candidate> candidates_;
  std::vector<uint64_t> scratch_;
};

}  // namespace dsv4
