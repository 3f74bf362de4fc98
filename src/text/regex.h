// Regular expressions as grammars: characters, classes, groups, alternatives and counts. What only a
// backtracking matcher can do (look-around, back-references, word borders) is refused.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "dsv4/status.h"
#include "text/grammar.h"

namespace dsv4 {

struct RegexOptions {
  // JSON schema's reading: the pattern may match anywhere in the text unless ^ and $ tie it down.
  bool search = false;
  // How one character of a set is written; nullptr: as itself.
  std::function<GrammarBuilder::Expr(GrammarBuilder&, const std::vector<GrammarBuilder::Range>&)>
      write;
};

// Errors name the place in the pattern.
Result<GrammarBuilder::Expr> regex_expr(GrammarBuilder& builder, std::string_view pattern,
                                        const RegexOptions& options = {});

// The whole answer is a match.
Result<Grammar> regex_grammar(std::string_view pattern);

// The answer is one of these.
Result<Grammar> choice_grammar(const std::vector<std::string>& choices);

}  // namespace dsv4
