// Any bytes as a regex or a JSON schema. Where it is one, a walk along what its grammar allows: the masks
// keep their word, and what a schema's grammar lets end is JSON.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "text/grammar_automaton.h"
#include "text/json_grammar.h"
#include "text/regex.h"
#include "unit/text/small_tokenizer.h"

namespace {

using namespace dsv4;

void walk(Grammar grammar, uint32_t choice, bool is_json) {
  static const Tokenizer tokenizer =
      Tokenizer::from_json(py::dumps(small_tokenizer()), "small.json").value();
  static const auto table = std::make_shared<const TokenTable>(tokenizer, tokenizer.vocab_size());
  constexpr int32_t kEos = 1;
  GrammarAutomaton automaton(std::move(grammar), table, kEos);
  auto state = automaton.start();
  std::string text;
  for (int i = 0; i < 24 && state != GrammarAutomaton::kDead; ++i) {
    const auto mask = automaton.allowed(state);
    std::vector<int32_t> allowed;
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
      if ((*mask)[static_cast<size_t>(id) / 64] >> (id % 64) & 1) allowed.push_back(id);
    }
    if (automaton.may_end(state) && is_json && !py::loads(text).ok()) std::abort();
    if (allowed.empty()) return;
    choice = choice * 1664525u + 1013904223u;
    const int32_t token = allowed[choice % allowed.size()];
    if (token == kEos) {
      if (!automaton.may_end(state)) std::abort();
      return;
    }
    state = automaton.step_token(state, token);
    if (state == GrammarAutomaton::kDead) std::abort();
    text += *tokenizer.token_bytes(token);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);
  if (data[1] == 'R') {
    auto grammar = regex_grammar(text);
    if (grammar.ok()) walk(std::move(grammar).value(), data[0], false);
    if (!grammar.ok() && grammar.status().message().empty()) std::abort();
    return 0;
  }
  const auto schema = py::loads(text);
  if (!schema.ok()) return 0;
  auto grammar = json_schema_grammar(*schema);
  if (grammar.ok()) walk(std::move(grammar).value(), data[0], true);
  return 0;
}
