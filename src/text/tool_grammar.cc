#include "text/tool_grammar.h"

#include <algorithm>

#include "base/str.h"
#include "text/json_grammar.h"
#include "text/regex.h"

namespace dsv4::chat {
namespace {

using Expr = GrammarBuilder::Expr;
using Range = GrammarBuilder::Range;
using py::Value;

// Raw text has no escape, so it may not spell a marker: the bar that markers are made of is left out.
constexpr char32_t kBeforeBar = 0xFF5B, kBehindBar = 0xFF5D;

Expr raw_character(GrammarBuilder& b, const std::vector<Range>& set) {
  std::vector<Range> without;
  for (const auto& [low, high] : set) {
    if (low <= kBeforeBar) without.push_back({low, std::min(high, kBeforeBar)});
    if (high >= kBehindBar) without.push_back({std::max(low, kBehindBar), high});
  }
  return without.empty() ? b.nothing() : b.one_of(without);
}

class ToolGrammar {
 public:
  ToolGrammar(GrammarBuilder& builder, const ToolGrammarOptions& options)
      : b_(builder),
        options_(options),
        any_raw_(b_.make_rule(b_.star(raw_character(b_, complement({}))))) {}

  Result<Expr> calls(const std::vector<ToolSpec>& tools) {
    std::vector<Expr> all;
    for (const ToolSpec& tool : tools) {
      auto arguments = tool.strict ? strict_arguments(tool.parameters) : any_arguments();
      if (!arguments.ok()) return arguments.status().with_context(cat("tool \"", tool.name, "\""));
      all.push_back(b_.sequence({marker("<"), b_.literal(cat("invoke name=\"", tool.name, "\">\n")),
                                 *arguments, marker("</"), b_.literal("invoke>\n")}));
    }
    const int32_t call = b_.make_rule(b_.choice(all));
    return b_.sequence({b_.literal("tool_calls>\n"), b_.repeat(call, 1, options_.one_call ? 1 : -1),
                        marker("</"), b_.literal("tool_calls>")});
  }

 private:
  Expr marker(const char* bracket) {
    return b_.sequence({b_.literal(bracket), b_.token(options_.dsml_token)});
  }

  Expr parameter(Expr name, Expr typed_value) {
    return b_.sequence({marker("<"), b_.literal("parameter name=\""), name, b_.literal("\" string=\""),
                        typed_value, marker("</"), b_.literal("parameter>\n")});
  }
  Expr as_text(Expr value) { return b_.sequence({b_.literal("true\">"), value}); }
  Expr as_json(Expr value) { return b_.sequence({b_.literal("false\">"), value}); }
  // The format's empty line where there are no arguments.
  Expr no_arguments() { return b_.optional(b_.literal("\n")); }

  Result<Expr> any_arguments() {
    JsonGrammar json(b_);
    const Expr key = raw_character(
        b_, complement({{0, 0x1F}, {'"', '"'}, {'<', '<'}, {'>', '>'}}));
    const int32_t one = b_.make_rule(
        parameter(b_.repeat(b_.make_rule(key), 1, -1),
                  b_.choice({as_text(b_.rule(any_raw_)), as_json(b_.rule(json.any_value()))})));
    return b_.choice({no_arguments(), b_.repeat(one, 1, -1)});
  }

  // The parameters in the order of the schema.
  Result<Expr> strict_arguments(const Value& schema) {
    const Value* const properties = schema.find("properties");
    if (!properties || !properties->if_object()) return no_arguments();
    JsonGrammar json(b_);
    std::vector<Expr> parts;
    bool any_required = false;
    for (const py::Member& m : *properties->if_object()) {
      DSV4_ASSIGN(const Expr value, property(json, schema, m.value));
      const Expr one = parameter(b_.literal(m.key), value);
      const bool required = is_required(schema, m.key);
      any_required = any_required || required;
      parts.push_back(required ? one : b_.optional(one));
    }
    const Expr all = b_.sequence(parts);
    return any_required ? all : b_.choice({all, no_arguments()});
  }

  static bool is_required(const Value& schema, const std::string& key) {
    const Value* const required = schema.find("required");
    const Value::Array* const list = required ? required->if_array() : nullptr;
    return list && std::any_of(list->begin(), list->end(), [&](const Value& v) {
      return v.if_string() && *v.if_string() == key;
    });
  }

  // Strings are raw text, everything else is JSON. What may be either is JSON.
  Result<Expr> property(JsonGrammar& json, const Value& root, const Value& schema) {
    const Value* const values = schema.find("enum");
    if (values && values->if_array() && !values->if_array()->empty() &&
        std::all_of(values->if_array()->begin(), values->if_array()->end(), plain_text)) {
      std::vector<Expr> all;
      for (const Value& v : *values->if_array()) all.push_back(b_.literal(*v.if_string()));
      return as_text(b_.choice(all));
    }
    const Value* const type = schema.find("type");
    const bool is_text = type && type->if_string() && *type->if_string() == "string";
    const bool restricted = values || schema.find("const") || schema.find("minLength") ||
                            schema.find("maxLength") || schema.find("format");
    if (is_text && !restricted) {
      const Value* const pattern = schema.find("pattern");
      if (!pattern || !pattern->if_string()) return as_text(b_.rule(any_raw_));
      DSV4_ASSIGN(const Expr text, regex_expr(b_, *pattern->if_string(),
                                              {.search = true, .write = raw_character}));
      return as_text(text);
    }
    DSV4_ASSIGN(const Expr value, json.part(root, schema));
    return as_json(value);
  }

  static bool plain_text(const Value& v) {
    return v.if_string() && v.if_string()->find("｜") == std::string::npos;
  }

  GrammarBuilder& b_;
  const ToolGrammarOptions& options_;
  const int32_t any_raw_;
};

}  // namespace

Result<Expr> tool_calls_expr(GrammarBuilder& builder, const std::vector<ToolSpec>& tools,
                             const ToolGrammarOptions& options) {
  return ToolGrammar(builder, options).calls(tools);
}

}  // namespace dsv4::chat
