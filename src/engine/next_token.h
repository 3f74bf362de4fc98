// What a row of logits becomes: the next token of an answer (drawn under a constraint, or forced),
// or the log probability of a token of the prompt. And whether the answer ends with it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "dsv4/status.h"
#include "dsv4/types.h"
#include "engine/sampler.h"
#include "engine/sequence.h"

namespace dsv4 {

// Everything in a request that can be judged without the state of the engine. kInvalidArgument
// names the field.
Status check_request(const Request& request, int64_t vocab_size);

// How the step is to sample the token behind seq.tokens; of kind kNone where the host has to have the
// logits: for penalties, a constraint or log probabilities.
SampleRow wanted_sample(const Sequence& seq);

// Appends the next token to the sequence and tells the constraint; `forced` says where it came from.
struct NextToken {
  SampledToken sampled;
  bool forced = false;
};
// From `logits` [V] of the last row of seq.tokens.
Result<NextToken> next_token(Sequence& seq, std::span<const float> logits, Sampler& sampler);
// From what the step sampled there.
Result<NextToken> next_token(Sequence& seq, int32_t sampled);

// After next_token: why the answer is over, if it is.
std::optional<FinishReason> end_reason(const Sequence& seq, int32_t eos_token);

}  // namespace dsv4
