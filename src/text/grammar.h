// A context-free grammar over bytes and whole tokens, as a recursive transition network: each rule is
// a small automaton whose edges take bytes, take a token, take another rule, or take nothing.
//
// Special tokens are symbols of their own: no edge over bytes ever stands for one, so that text which
// merely spells a marker is not the marker, and a grammar that wants one asks for its id.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dsv4/status.h"

namespace dsv4 {

struct Grammar {
  struct Edge {
    enum class Kind : uint8_t { kEmpty, kBytes, kToken, kRule };
    Kind kind = Kind::kEmpty;
    uint8_t low = 0, high = 0;  // kBytes: one byte of this range, both ends included
    int32_t value = 0;          // kToken: its id; kRule: the rule
    int32_t target = 0;
  };
  struct Rule {
    int32_t start = 0, end = 0;  // states
  };

  std::vector<std::vector<Edge>> states;
  std::vector<Rule> rules;
  int32_t root = 0;  // a rule
};

// Builds one from expressions. An expression is a piece of a rule's automaton: it is used up by the
// call it is given to, once.
class GrammarBuilder {
 public:
  // What the text may be made of beyond this is refused by build().
  static constexpr size_t kMaxStates = 100'000;

  struct Expr {
    int32_t start = 0, end = 0;
  };
  using Range = std::pair<char32_t, char32_t>;  // code points, both ends included

  Expr empty();
  Expr nothing();  // matches no text at all
  Expr literal(std::string_view text);
  Expr token(int32_t id);
  Expr rule(int32_t rule);
  Expr byte_range(uint8_t low, uint8_t high);
  // One character of the set, as UTF-8.
  Expr one_of(const std::vector<Range>& set);

  Expr sequence(const std::vector<Expr>& parts);
  Expr choice(const std::vector<Expr>& alternatives);
  Expr optional(Expr expr);
  Expr star(Expr expr);  // any number of times
  // A rule from `min` to `max` times; max < 0: without end.
  Expr repeat(int32_t rule, int64_t min, int64_t max);

  // A rule is declared, may be used, and is defined once.
  int32_t declare();
  void define(int32_t rule, Expr body);
  int32_t make_rule(Expr body);

  Result<Grammar> build(int32_t root);

 private:
  int32_t state();
  void edge(int32_t from, Grammar::Edge edge);
  void connect(int32_t from, int32_t to) { edge(from, {.target = to}); }
  // Code points of one range that have UTF-8 of the same length.
  void utf8_range(int32_t from, int32_t to, char32_t low, char32_t high);

  Grammar grammar_;
};

// The set of code points that are not in `set`, without surrogates.
std::vector<GrammarBuilder::Range> complement(std::vector<GrammarBuilder::Range> set);

}  // namespace dsv4
