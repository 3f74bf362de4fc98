#include "text/json_grammar.h"

#include "base/str.h"

namespace dsv4 {

using Expr = GrammarBuilder::Expr;
using Range = GrammarBuilder::Range;

JsonGrammar::JsonGrammar(GrammarBuilder& builder) : builder_(builder) {}

Expr JsonGrammar::after_open() {
  const auto indent = [&] {
    return builder_.repeat(builder_.make_rule(builder_.byte_range(' ', ' ')), 0, 32);
  };
  return builder_.choice({builder_.empty(), builder_.sequence({builder_.literal("\n"), indent()})});
}

Expr JsonGrammar::after_comma() {
  return builder_.choice({builder_.literal(" "), after_open()});
}

Expr JsonGrammar::string_character(GrammarBuilder& b, const std::vector<Range>& set) {
  std::vector<Expr> all;
  std::vector<Range> plain;
  // Text that spells a marker of the prompt format would be read as one: behind ｜ no D.
  constexpr char32_t kBar = 0xFF5C;
  const auto has = [&](char32_t c) {
    for (const auto& [low, high] : set) {
      if (low <= c && c <= high) return true;
    }
    return false;
  };
  const std::vector<Range> escaped = complement({{0, 0x1F}, {'"', '"'}, {'\\', '\\'}, {kBar, kBar}});
  for (const auto& [low, high] : set) {
    for (const auto& [first, last] : escaped) {
      const char32_t a = std::max(low, first), z = std::min(high, last);
      if (a <= z) plain.push_back({a, z});
    }
  }
  if (!plain.empty()) all.push_back(b.one_of(plain));
  constexpr std::pair<char32_t, std::string_view> kShort[] = {
      {'"', "\\\""}, {'\\', "\\\\"}, {'\n', "\\n"}, {'\t', "\\t"}, {'\r', "\\r"},
      {'\b', "\\b"}, {'\f', "\\f"},  {'/', "\\/"}};
  for (const auto& [c, text] : kShort) {
    if (has(c)) all.push_back(b.literal(text));
  }
  for (char32_t c = 0; c < 0x20; ++c) {
    const bool has_short = c == '\n' || c == '\t' || c == '\r' || c == '\b' || c == '\f';
    if (!has(c) || has_short) continue;
    constexpr std::string_view kHex = "0123456789abcdef";
    all.push_back(b.literal(cat("\\u00", kHex[c / 16], kHex[c % 16])));
  }
  if (has(kBar)) all.push_back(b.literal("\\uff5c"));
  return all.empty() ? b.nothing() : b.choice(all);
}

Expr JsonGrammar::quoted(Expr inside) {
  return builder_.sequence({builder_.literal("\""), inside, builder_.literal("\"")});
}

Expr JsonGrammar::member(Expr key, int32_t value) {
  return builder_.sequence({key, builder_.choice({builder_.literal(":"), builder_.literal(": ")}),
                            builder_.rule(value)});
}

Expr JsonGrammar::braces(Expr members, bool may_be_empty) {
  const Expr full = builder_.sequence(
      {builder_.literal("{"), after_open(), members, after_open(), builder_.literal("}")});
  return may_be_empty ? builder_.choice({full, builder_.literal("{}")}) : full;
}

// The rules that need no schema.
int32_t JsonGrammar::value_rule(std::string_view name) {
  if (const auto found = rules_.find(name); found != rules_.end()) return found->second;
  const int32_t made = builder_.declare();
  rules_.emplace(name, made);
  GrammarBuilder& b = builder_;
  const auto digits = [&](int64_t min, int64_t max) {
    return b.repeat(b.make_rule(b.byte_range('0', '9')), min, max);
  };
  // Counts keep a number from going on for ever.
  const auto whole = [&] {
    return b.sequence({b.optional(b.literal("-")),
                       b.choice({b.literal("0"), b.sequence({b.byte_range('1', '9'), digits(0, 18)})})});
  };
  const auto list = [&](Expr first, Expr next, std::string_view open, std::string_view close) {
    const Expr more = b.star(b.sequence({b.literal(","), after_comma(), next}));
    return b.choice({b.literal(cat(open, close)),
                     b.sequence({b.literal(open), after_open(), first, more, after_open(),
                                 b.literal(close)})});
  };
  Expr body;
  if (name == "character") {
    body = string_character(b, complement({}));
  } else if (name == "string") {
    body = quoted(b.star(b.rule(value_rule("character"))));
  } else if (name == "integer") {
    body = whole();
  } else if (name == "number") {
    body = b.sequence(
        {whole(), b.optional(b.sequence({b.literal("."), digits(1, 17)})),
         b.optional(b.sequence({b.choice({b.literal("e"), b.literal("E")}),
                                b.optional(b.choice({b.literal("+"), b.literal("-")})),
                                digits(1, 3)}))});
  } else if (name == "boolean") {
    body = b.choice({b.literal("true"), b.literal("false")});
  } else if (name == "null") {
    body = b.literal("null");
  } else if (name == "member") {
    body = member(b.rule(value_rule("string")), value_rule("value"));
  } else if (name == "object") {
    const int32_t one = value_rule("member");
    body = list(b.rule(one), b.rule(one), "{", "}");
  } else if (name == "array") {
    const int32_t one = value_rule("value");
    body = list(b.rule(one), b.rule(one), "[", "]");
  } else {  // "value"
    std::vector<Expr> all;
    for (const std::string_view type : {"object", "array", "string", "number", "boolean", "null"}) {
      all.push_back(b.rule(value_rule(type)));
    }
    body = b.choice(all);
  }
  b.define(made, body);
  return made;
}

int32_t JsonGrammar::any_value() {
  return value_rule("value");
}
int32_t JsonGrammar::any_object() {
  return value_rule("object");
}

Expr JsonGrammar::literal_value(const py::Value& value) {
  const auto list = [&](size_t size, auto&& item, std::string_view open, std::string_view close) {
    if (size == 0) return builder_.literal(cat(open, close));
    std::vector<Expr> parts = {builder_.literal(open), after_open()};
    for (size_t i = 0; i < size; ++i) {
      if (i > 0) {
        parts.push_back(builder_.literal(","));
        parts.push_back(after_comma());
      }
      parts.push_back(item(i));
    }
    parts.push_back(after_open());
    parts.push_back(builder_.literal(close));
    return builder_.sequence(parts);
  };
  if (const py::Value::Array* a = value.if_array()) {
    return list(a->size(), [&](size_t i) { return literal_value((*a)[i]); }, "[", "]");
  }
  if (const py::Value::Object* o = value.if_object()) {
    return list(
        o->size(),
        [&](size_t i) {
          return member(builder_.literal(py::dumps(py::Value((*o)[i].key))),
                        builder_.make_rule(literal_value((*o)[i].value)));
        },
        "{", "}");
  }
  return builder_.literal(py::dumps(value));
}

Result<Grammar> json_object_grammar() {
  GrammarBuilder builder;
  JsonGrammar json(builder);
  return builder.build(json.any_object());
}

Result<Grammar> json_schema_grammar(const py::Value& schema) {
  GrammarBuilder builder;
  JsonGrammar json(builder);
  DSV4_ASSIGN(const Expr expr, json.schema(schema));
  return builder.build(builder.make_rule(expr));
}

}  // namespace dsv4
