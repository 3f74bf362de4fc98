// How a reply is judged, and what a run adds up. Pure functions of text and numbers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "eval/suite.h"

namespace dsv4::eval {

// The reply of one turn: text with its EOS where the model ended by itself.
bool exact_match(const Item& item, std::string_view reply);

struct ToolScore {
  bool parsed = false;     // the reply follows the format and is exactly one call
  bool arguments = false;  // and name and arguments are the expected ones
};
ToolScore score_call(const Item& item, std::string_view reply);

// Equal as JSON: members in any order, numbers by value within their kind.
bool same_json(const py::Value& a, const py::Value& b);

// Teacher forcing over texts: cross entropy, and what a drafter of the token after next would have
// had accepted by greedy decoding.
class TextScore {
 public:
  // `logits` [V] of the position before `token`.
  void add_token(std::span<const float> logits, int32_t token);
  // tokens [n] of one text; main [n] = the main model's argmax at each position; draft [n] = the
  // drafter's argmax at each, given the token behind it, for the one behind that. Counts where the
  // text itself went the main model's way, which is where decoding would have drafted.
  void add_drafts(std::span<const int32_t> tokens, std::span<const int32_t> main,
                  std::span<const int32_t> draft);

  double perplexity() const;  // NaN before the first token
  double acceptance() const;  // accepted / drafted; NaN where none was drafted
  int64_t tokens() const { return tokens_; }
  int64_t drafted() const { return drafted_; }

 private:
  double nats_ = 0;
  int64_t tokens_ = 0, drafted_ = 0, accepted_ = 0;
};

// The largest, the lowest index on ties, as greedy sampling does.
int32_t argmax(std::span<const float> logits);

}  // namespace dsv4::eval
