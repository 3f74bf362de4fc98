// Pieces that OpenAI's endpoints have in common.
#pragma once

#include <string>
#include <vector>

#include "server/generation.h"
#include "text/py_json.h"
#include "text/tokenizer.h"

namespace dsv4::server {

// Sums over the choices; the prompt counts once for each prompt.
struct UsageSum {
  int64_t prompt = 0, cached = 0, completion = 0, reasoning = 0;
  void add_completion(const Outcome& outcome);
  void add_prompt(const Outcome& outcome);
};
py::Value usage_json(const UsageSum& usage);

// "stop", "length", "tool_calls".
std::string finish_reason(const Outcome& outcome);

// {"content": [{token, logprob, bytes, top_logprobs}], "refusal": null}
py::Value logprobs_json(const Tokenizer& tokenizer, const std::vector<TokenInfo>& tokens);

// A log probability that JSON can express: -inf becomes -9999.
double finite_logprob(float x);

// The text of one token, with U+FFFD where it is a part of a character.
std::string token_text(const Tokenizer& tokenizer, int32_t id);

}  // namespace dsv4::server
