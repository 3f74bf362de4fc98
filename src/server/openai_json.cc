#include "server/openai_json.h"

#include <algorithm>

#include "server/fields.h"
#include "text/utf8.h"

namespace dsv4::server {
namespace {

py::Value token_json(const Tokenizer& tokenizer, int32_t id, float logprob) {
  py::Value::Array bytes;
  for (const char c : tokenizer.token_bytes(id).value_or("")) {
    bytes.emplace_back(static_cast<int>(static_cast<unsigned char>(c)));
  }
  return py::Value::object({{"token", py::Value(token_text(tokenizer, id))},
                            {"logprob", py::Value(finite_logprob(logprob))},
                            {"bytes", py::Value(std::move(bytes))}});
}

}  // namespace

void UsageSum::add_completion(const Outcome& o) {
  completion += o.completion_tokens;
  reasoning += o.reasoning_tokens;
}
void UsageSum::add_prompt(const Outcome& o) {
  prompt += o.prompt_tokens;
  cached += o.cached_tokens;
}

py::Value usage_json(const UsageSum& u) {
  return py::Value::object(
      {{"prompt_tokens", json_int(u.prompt)},
       {"completion_tokens", json_int(u.completion)},
       {"total_tokens", json_int(u.prompt + u.completion)},
       {"prompt_tokens_details", py::Value::object({{"cached_tokens", json_int(u.cached)}})},
       {"completion_tokens_details",
        py::Value::object({{"reasoning_tokens", json_int(u.reasoning)}})}});
}

std::string finish_reason(const Outcome& outcome) {
  switch (outcome.reason) {
    case StopReason::kLength:
      return "length";
    case StopReason::kToolCalls:
      return "tool_calls";
    default:
      return "stop";
  }
}

double finite_logprob(float x) {
  return std::max(static_cast<double>(x), -9999.0);
}

std::string token_text(const Tokenizer& tokenizer, int32_t id) {
  return utf8_lossy(tokenizer.token_bytes(id).value_or(""));
}

py::Value logprobs_json(const Tokenizer& tokenizer, const std::vector<TokenInfo>& tokens) {
  py::Value::Array content;
  for (const TokenInfo& info : tokens) {
    py::Value token = token_json(tokenizer, info.token, info.logprob.value_or(0));
    py::Value::Array top;
    for (const TokenLogprob& t : info.top) top.push_back(token_json(tokenizer, t.token, t.logprob));
    token.set("top_logprobs", py::Value(std::move(top)));
    content.push_back(std::move(token));
  }
  return py::Value::object({{"content", py::Value(std::move(content))}, {"refusal", py::Value()}});
}

}  // namespace dsv4::server
