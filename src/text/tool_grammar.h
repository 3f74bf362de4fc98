// The block of tool calls as a grammar: the markers are tokens of their own, names are those of the
// tools, and the arguments of a strict tool follow its schema.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dsv4/status.h"
#include "text/grammar.h"
#include "text/py_json.h"

namespace dsv4::chat {

struct ToolSpec {
  std::string name;
  py::Value parameters;  // its JSON schema; null: no arguments
  bool strict = false;   // otherwise any arguments, as valid JSON
};

struct ToolGrammarOptions {
  int32_t dsml_token = 0;
  bool one_call = false;  // no parallel calls
};

// What follows the block's opening marker; put the two line feeds, '<' and the marker before it for
// the whole block.
Result<GrammarBuilder::Expr> tool_calls_expr(GrammarBuilder& builder,
                                             const std::vector<ToolSpec>& tools,
                                             const ToolGrammarOptions& options);

}  // namespace dsv4::chat
