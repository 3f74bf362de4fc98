#include "eval/score.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "text/chat.h"

namespace dsv4::eval {

bool exact_match(const Item& item, std::string_view reply) {
  const auto message = chat::parse(reply, item.thinking);
  return message.ok() && message->tool_calls.empty() && message->content == item.expected;
}

ToolScore score_call(const Item& item, std::string_view reply) {
  ToolScore score;
  const auto message = chat::parse(reply, item.thinking);
  if (!message.ok() || message->tool_calls.size() != 1) return score;
  const chat::ToolCall& call = message->tool_calls.front();
  const auto arguments = py::loads(call.arguments);
  score.parsed = arguments.ok();
  score.arguments =
      score.parsed && call.name == item.tool_name && same_json(*arguments, item.tool_arguments);
  return score;
}

bool same_json(const py::Value& a, const py::Value& b) {
  if (a.type_name() != b.type_name()) return false;
  if (const auto* x = a.if_array()) {
    return std::equal(x->begin(), x->end(), b.if_array()->begin(), b.if_array()->end(), same_json);
  }
  if (const auto* x = a.if_object()) {
    return x->size() == b.if_object()->size() &&
           std::all_of(x->begin(), x->end(), [&](const py::Member& m) {
             const py::Value* other = b.find(m.key);
             return other && same_json(m.value, *other);
           });
  }
  return py::dumps(a) == py::dumps(b);
}

void TextScore::add_token(std::span<const float> logits, int32_t token) {
  const float top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float l : logits) sum += std::exp(static_cast<double>(l) - static_cast<double>(top));
  nats_ += std::log(sum) + static_cast<double>(top) -
           static_cast<double>(logits[static_cast<size_t>(token)]);
  ++tokens_;
}

void TextScore::add_drafts(std::span<const int32_t> tokens, std::span<const int32_t> main,
                           std::span<const int32_t> draft) {
  for (size_t p = 0; p + 2 < tokens.size(); ++p) {
    if (main[p] != tokens[p + 1]) continue;
    ++drafted_;
    accepted_ += draft[p] == main[p + 1];
  }
}

double TextScore::perplexity() const {
  if (tokens_ == 0) return std::numeric_limits<double>::quiet_NaN();
  return std::exp(nats_ / static_cast<double>(tokens_));
}

double TextScore::acceptance() const {
  if (drafted_ == 0) return std::numeric_limits<double>::quiet_NaN();
  return static_cast<double>(accepted_) / static_cast<double>(drafted_);
}

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace dsv4::eval
