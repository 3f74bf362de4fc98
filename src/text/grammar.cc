#include "text/grammar.h"

#include <algorithm>

#include "base/str.h"
#include "text/utf8.h"

namespace dsv4 {

using Edge = Grammar::Edge;

int32_t GrammarBuilder::state() {
  // Beyond the limit nothing is kept; build() says so.
  if (grammar_.states.size() <= kMaxStates) grammar_.states.emplace_back();
  return static_cast<int32_t>(grammar_.states.size()) - 1;
}

void GrammarBuilder::edge(int32_t from, Edge e) {
  if (grammar_.states.size() <= kMaxStates) {
    grammar_.states[static_cast<size_t>(from)].push_back(e);
  }
}

GrammarBuilder::Expr GrammarBuilder::empty() {
  const int32_t s = state();
  return {s, s};
}

GrammarBuilder::Expr GrammarBuilder::nothing() {
  const int32_t start = state();
  return {start, state()};
}

GrammarBuilder::Expr GrammarBuilder::literal(std::string_view text) {
  const int32_t start = state();
  int32_t at = start;
  for (const char c : text) {
    const int32_t next = state();
    const auto byte = static_cast<uint8_t>(c);
    edge(at, {.kind = Edge::Kind::kBytes, .low = byte, .high = byte, .target = next});
    at = next;
  }
  return {start, at};
}

GrammarBuilder::Expr GrammarBuilder::token(int32_t id) {
  const Expr out = nothing();
  edge(out.start, {.kind = Edge::Kind::kToken, .value = id, .target = out.end});
  return out;
}

GrammarBuilder::Expr GrammarBuilder::rule(int32_t rule) {
  const Expr out = nothing();
  edge(out.start, {.kind = Edge::Kind::kRule, .value = rule, .target = out.end});
  return out;
}

GrammarBuilder::Expr GrammarBuilder::byte_range(uint8_t low, uint8_t high) {
  const Expr out = nothing();
  edge(out.start, {.kind = Edge::Kind::kBytes, .low = low, .high = high, .target = out.end});
  return out;
}

void GrammarBuilder::utf8_range(int32_t from, int32_t to, char32_t low, char32_t high) {
  std::string a, b;
  append_utf8(a, low);
  append_utf8(b, high);
  // Recursion over the bytes: where the first ones are equal they are one edge, and else the range
  // falls into a part with the lowest first byte, full ones, and a part with the highest.
  const auto add = [&](auto&& self, int32_t at, std::string_view lo, std::string_view hi) -> void {
    const auto first = static_cast<uint8_t>(lo[0]);
    const auto last = static_cast<uint8_t>(hi[0]);
    if (lo.size() == 1) {
      return edge(at, {.kind = Edge::Kind::kBytes, .low = first, .high = last, .target = to});
    }
    const std::string lowest(lo.size() - 1, '\x80'), highest(lo.size() - 1, '\xBF');
    const auto step = [&](uint8_t x, uint8_t y, std::string_view l, std::string_view h) {
      const int32_t next = state();
      edge(at, {.kind = Edge::Kind::kBytes, .low = x, .high = y, .target = next});
      self(self, next, l, h);
    };
    const std::string_view lo_rest = lo.substr(1), hi_rest = hi.substr(1);
    if (first == last) return step(first, first, lo_rest, hi_rest);
    uint8_t full_low = first, full_high = last;
    if (lo_rest != lowest) {
      step(first, first, lo_rest, highest);
      ++full_low;
    }
    if (hi_rest != highest) {
      step(last, last, lowest, hi_rest);
      --full_high;
    }
    if (full_low <= full_high) step(full_low, full_high, lowest, highest);
  };
  add(add, from, a, b);
}

GrammarBuilder::Expr GrammarBuilder::one_of(const std::vector<Range>& set) {
  const Expr out = nothing();
  constexpr Range kLengths[] = {
      {0, 0x7F}, {0x80, 0x7FF}, {0x800, 0xD7FF}, {0xE000, 0xFFFF}, {0x10000, 0x10FFFF}};
  for (const auto& [low, high] : set) {
    for (const auto& [first, last] : kLengths) {
      const char32_t a = std::max(low, first), b = std::min(high, last);
      if (a <= b) utf8_range(out.start, out.end, a, b);
    }
  }
  return out;
}

GrammarBuilder::Expr GrammarBuilder::sequence(const std::vector<Expr>& parts) {
  if (parts.empty()) return empty();
  for (size_t i = 1; i < parts.size(); ++i) connect(parts[i - 1].end, parts[i].start);
  return {parts.front().start, parts.back().end};
}

GrammarBuilder::Expr GrammarBuilder::choice(const std::vector<Expr>& alternatives) {
  const Expr out = nothing();
  for (const Expr& e : alternatives) {
    connect(out.start, e.start);
    connect(e.end, out.end);
  }
  return out;
}

GrammarBuilder::Expr GrammarBuilder::optional(Expr expr) {
  return choice({expr, empty()});
}

GrammarBuilder::Expr GrammarBuilder::star(Expr expr) {
  const Expr out = nothing();
  connect(out.start, out.end);
  connect(out.start, expr.start);
  connect(expr.end, out.start);
  return out;
}

GrammarBuilder::Expr GrammarBuilder::repeat(int32_t of, int64_t min, int64_t max) {
  const auto most = static_cast<int64_t>(kMaxStates);
  const int32_t start = state();
  int32_t at = start;
  for (int64_t i = 0; i < std::min(min, most); ++i) {
    const int32_t next = state();
    edge(at, {.kind = Edge::Kind::kRule, .value = of, .target = next});
    at = next;
  }
  const int32_t end = state();
  connect(at, end);
  if (max < 0) {
    edge(at, {.kind = Edge::Kind::kRule, .value = of, .target = at});
  }
  for (int64_t i = min; i < std::min(max, most); ++i) {
    const int32_t next = state();
    edge(at, {.kind = Edge::Kind::kRule, .value = of, .target = next});
    connect(next, end);
    at = next;
  }
  return {start, end};
}

int32_t GrammarBuilder::declare() {
  grammar_.rules.push_back({-1, -1});
  return static_cast<int32_t>(grammar_.rules.size()) - 1;
}

void GrammarBuilder::define(int32_t rule, Expr body) {
  // An end of its own, which nothing leaves: what follows a use of the rule is another rule's.
  const int32_t end = state();
  connect(body.end, end);
  grammar_.rules[static_cast<size_t>(rule)] = {body.start, end};
}

int32_t GrammarBuilder::make_rule(Expr body) {
  const int32_t made = declare();
  define(made, body);
  return made;
}

Result<Grammar> GrammarBuilder::build(int32_t root) {
  if (grammar_.states.size() > kMaxStates) {
    return Status(Code::kUnsupported, cat("grammar: needs more than ", kMaxStates,
                                          " states; lower its counts (maxLength, maxItems, {m,n})"));
  }
  grammar_.root = root;
  return std::move(grammar_);
}

std::vector<GrammarBuilder::Range> complement(std::vector<GrammarBuilder::Range> set) {
  set.push_back({0xD800, 0xDFFF});
  std::sort(set.begin(), set.end());
  std::vector<GrammarBuilder::Range> out;
  char32_t next = 0;
  for (const auto& [low, high] : set) {
    if (low > next) out.push_back({next, static_cast<char32_t>(low - 1)});
    next = std::max(next, static_cast<char32_t>(high + 1));
  }
  if (next <= 0x10FFFF) out.push_back({next, 0x10FFFF});
  return out;
}

}  // namespace dsv4
