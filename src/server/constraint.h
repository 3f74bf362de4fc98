// What an answer may be, as the engine asks for it token by token: the grammar of an output format,
// the block of tool calls, or both. Nothing but the end of the reasoning is asked of reasoning.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dsv4/types.h"
#include "text/grammar_automaton.h"
#include "text/py_json.h"
#include "text/tokenizer.h"
#include "text/tool_grammar.h"

namespace dsv4::server {

// The text of an answer.
struct OutputFormat {
  enum class Kind { kText, kJsonObject, kJsonSchema, kRegex, kChoice };
  Kind kind = Kind::kText;
  py::Value schema;
  std::string regex;
  std::vector<std::string> choices;
};

struct ConstraintSpec {
  OutputFormat format;
  std::vector<chat::ToolSpec> tools;
  bool must_call = false;   // the answer is a block of tool calls
  bool may_not_call = false;
  bool one_call = false;
  bool reasons_first = false;
};

// Makes constraints; keeps the automata of recent ones, with what they have learned about the
// vocabulary. Any thread.
class ConstraintMaker {
 public:
  ConstraintMaker(const Tokenizer& tokenizer, int64_t vocab_size, int32_t eos_token);
  ~ConstraintMaker();

  // Makes one for each of several answers. Empty where nothing has to be constrained. Errors: a
  // schema or regex that is wrong or not supported.
  using Factory = std::function<std::shared_ptr<TokenConstraint>()>;
  Result<Factory> make(const ConstraintSpec& spec);

  // What all constraints of a vocabulary share.
  struct Vocabulary;

 private:
  static constexpr size_t kKept = 32;
  static constexpr size_t kMaxStates = 20'000;  // an automaton that grew beyond is made anew

  Result<std::shared_ptr<GrammarAutomaton>> automaton(const ConstraintSpec& spec);

  const Tokenizer& tokenizer_;
  const int64_t vocab_size_;
  const int32_t eos_;
  std::mutex mutex_;
  std::shared_ptr<const Vocabulary> vocabulary_;  // made on first use
  struct Kept {
    std::string key;
    std::shared_ptr<GrammarAutomaton> automaton;
  };
  std::list<Kept> kept_;  // the last used one first
};

}  // namespace dsv4::server
