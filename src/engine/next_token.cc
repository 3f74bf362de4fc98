#include "engine/next_token.h"

#include <algorithm>

#include "base/str.h"
#include "engine/batch_builder.h"

namespace dsv4 {
namespace {

Status check_forced(const Request& r, int64_t vocab_size) {
  int64_t previous = 0;
  for (size_t i = 0; i < r.forced.size(); ++i) {
    const ForcedTokens& f = r.forced[i];
    if (f.tokens.empty() || f.after < previous) {
      return Status(
          Code::kInvalidArgument,
          cat("request: forced tokens ", i, " with ", f.tokens.size(), " tokens after ", f.after,
              ": expected at least one token, and `after` in rising order from 0"));
    }
    previous = f.after;
    DSV4_TRY(check_tokens(f.tokens, vocab_size).with_context(cat("forced tokens ", i)));
    DSV4_TRY(check_tokens(f.unless, vocab_size).with_context(cat("forced tokens ", i, ", unless")));
  }
  return {};
}

// The token that the request wants at this place, if it wants one.
const int32_t* due_token(Sequence& seq) {
  const auto answer =
      std::span<const int32_t>(seq.tokens).subspan(static_cast<size_t>(seq.prompt()));
  for (; seq.next_forced < seq.request.forced.size(); ++seq.next_forced, seq.forced_done = 0) {
    const ForcedTokens& f = seq.request.forced[seq.next_forced];
    if (seq.forced_done > 0) {
      if (seq.forced_done < f.tokens.size()) return &f.tokens[seq.forced_done];
      continue;
    }
    if (std::ssize(answer) < f.after) return nullptr;
    const bool dropped = std::find_first_of(answer.begin(), answer.end(), f.unless.begin(),
                                            f.unless.end()) != answer.end();
    if (!dropped) return &f.tokens[0];
  }
  return nullptr;
}

void append(Sequence& seq, const NextToken& next) {
  const int32_t token = next.sampled.token;
  if (next.forced) ++seq.forced_done;
  if (seq.request.constraint) seq.request.constraint->accept(token);
  ++seq.usage.completion_tokens;
  seq.tokens.push_back(token);
  if (has_penalties(seq.request.sampling)) seq.history.add_generated(token);
}

}  // namespace

Status check_request(const Request& r, int64_t vocab_size) {
  if (r.prompt.empty()) {
    return Status(Code::kInvalidArgument, "request: the prompt has no tokens; send at least one");
  }
  DSV4_TRY(check_tokens(r.prompt, vocab_size).with_context("prompt"));
  DSV4_TRY(check_tokens(r.stop_tokens, vocab_size).with_context("stop_tokens"));
  DSV4_TRY(validate_sampling(r.sampling, vocab_size));
  DSV4_TRY(check_forced(r, vocab_size));
  if (r.prompt_logprobs < -1 || r.prompt_logprobs > vocab_size) {
    return Status(Code::kInvalidArgument, cat("request: prompt_logprobs ", r.prompt_logprobs,
                                              ": expected 0..", vocab_size, ", or -1 for none"));
  }
  if (r.max_tokens < -1 || (r.max_tokens == 0 && r.prompt_logprobs < 0)) {
    return Status(Code::kInvalidArgument, cat("request: max_tokens ", r.max_tokens,
                                              ": expected > 0, -1 for no limit, or 0 together with "
                                              "prompt_logprobs"));
  }
  if (r.max_context < 0) {
    return Status(Code::kInvalidArgument, cat("request: max_context ", r.max_context,
                                              ": expected > 0, or 0 for the engine's"));
  }
  return {};
}

SampleRow wanted_sample(const Sequence& seq) {
  const SamplingParams& p = seq.request.sampling;
  if (needs_logits(p) || seq.request.constraint) return {};
  return sample_row(p, seq.seed, std::ssize(seq.tokens));
}

Result<NextToken> next_token(Sequence& seq, std::span<const float> logits, Sampler& sampler) {
  const std::ptrdiff_t position = std::ssize(seq.tokens);
  TokenConstraint* const constraint = seq.request.constraint.get();
  NextToken next;
  if (const int32_t* const due = due_token(seq)) {
    next.forced = true;
    DSV4_ASSIGN(next.sampled, sampler.score(logits, *due, seq.request.sampling.logprobs, position));
  } else {
    const auto mask = constraint ? constraint->allowed() : std::span<const uint64_t>();
    DSV4_ASSIGN(next.sampled, sampler.sample(logits, seq.request.sampling, seq.history, seq.seed,
                                             position, mask));
  }
  append(seq, next);
  return next;
}

Result<NextToken> next_token(Sequence& seq, int32_t sampled) {
  const int32_t* const due = due_token(seq);
  NextToken next{.sampled = {.token = due ? *due : sampled}, .forced = due != nullptr};
  append(seq, next);
  return next;
}

std::optional<FinishReason> end_reason(const Sequence& seq, int32_t eos_token) {
  const Request& r = seq.request;
  const int32_t token = seq.tokens.back();
  if (!r.ignore_eos && token == eos_token) return FinishReason::kEos;
  if (std::find(r.stop_tokens.begin(), r.stop_tokens.end(), token) != r.stop_tokens.end()) {
    return FinishReason::kStopToken;
  }
  if (seq.usage.completion_tokens == r.max_tokens) return FinishReason::kMaxTokens;
  if (std::ssize(seq.tokens) > seq.context) return FinishReason::kContext;
  return std::nullopt;
}

}  // namespace dsv4
