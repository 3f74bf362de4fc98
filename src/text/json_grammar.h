// JSON as grammars: any value, and what a JSON schema describes.
//
// Members come in the order of the schema, white space is that of common writers (none, one space, or
// line breaks with indentation). What a schema says that a grammar cannot hold is refused, with its
// path, rather than left out.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "dsv4/status.h"
#include "text/grammar.h"
#include "text/py_json.h"

namespace dsv4 {

class JsonGrammar {
 public:
  explicit JsonGrammar(GrammarBuilder& builder);

  // Rules, made on first use.
  int32_t any_value();
  int32_t any_object();
  // What `schema` (true, false or an object) describes. Errors: kUnsupported for keywords beyond
  // the ones below, kInvalidArgument for those whose value makes no sense.
  //   type, enum, const, anyOf, oneOf, allOf of objects, $ref within the document, $defs, definitions
  //   properties, required, additionalProperties; items, prefixItems, minItems, maxItems
  //   minLength, maxLength, pattern, format (of strings)
  //   minimum, maximum, exclusiveMinimum, exclusiveMaximum (of integers)
  // An object with `properties` has no others unless additionalProperties allows them.
  Result<GrammarBuilder::Expr> schema(const py::Value& schema);

  // The same for a part of a larger schema: references start at `root`, which must outlive this.
  Result<GrammarBuilder::Expr> part(const py::Value& root, const py::Value& schema);

  // One character of a JSON text's string, of those in `set`, escaped where it has to be.
  static GrammarBuilder::Expr string_character(GrammarBuilder& builder,
                                               const std::vector<GrammarBuilder::Range>& set);

 private:
  using Expr = GrammarBuilder::Expr;

  Result<Expr> compile(const py::Value& schema, const std::string& path, int depth);
  Result<Expr> typed(std::string_view type, const py::Value& schema, const std::string& path,
                     int depth);
  Result<Expr> object(const py::Value& schema, const std::string& path, int depth);
  Result<Expr> array(const py::Value& schema, const std::string& path, int depth);
  Result<Expr> string(const py::Value& schema, const std::string& path);
  Result<Expr> integer(const py::Value& schema, const std::string& path);
  Result<Expr> reference(const std::string& ref, const std::string& path, int depth);
  Result<py::Value> merged(const py::Value& schema, const std::string& path);

  // "key": value, where `value` is a rule.
  Expr member(Expr key, int32_t value);
  Expr braces(Expr members_or_nothing, bool may_be_empty);
  Expr literal_value(const py::Value& value);
  Expr quoted(Expr inside);
  Expr integer_between(std::string_view low, std::string_view high);
  // White space behind an opening bracket or a comma, and before a closing one.
  Expr after_open();
  Expr after_comma();

  int32_t value_rule(std::string_view name);

  GrammarBuilder& builder_;
  std::map<std::string, int32_t, std::less<>> rules_;
  const py::Value* root_ = nullptr;
};

// A JSON object with anything in it.
Result<Grammar> json_object_grammar();
Result<Grammar> json_schema_grammar(const py::Value& schema);

}  // namespace dsv4
