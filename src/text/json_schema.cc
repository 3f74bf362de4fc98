// JsonGrammar's reading of schemas.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "base/str.h"
#include "text/json_grammar.h"
#include "text/regex.h"

namespace dsv4 {
namespace {

using Expr = GrammarBuilder::Expr;
using py::Value;

constexpr int kMaxNesting = 100;

// They describe a value to people, or name things.
constexpr std::string_view kAnnotations[] = {
    "title",   "description", "default",   "examples",  "example",  "$schema", "$id",
    "$comment", "deprecated", "readOnly",  "writeOnly", "$defs",    "definitions", "$anchor"};
constexpr std::string_view kKeywords[] = {
    "type",      "enum",       "const",    "anyOf",    "oneOf",     "allOf",   "$ref",
    "properties", "required",  "additionalProperties", "items",     "prefixItems", "minItems",
    "maxItems",  "minLength",  "maxLength", "pattern", "format",    "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum"};

struct Format {
  std::string_view name, pattern;
};
constexpr Format kFormats[] = {
    {"date", R"(^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$)"},
    {"time", R"(^([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)?$)"},
    {"date-time",
     R"(^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$)"},
    {"uuid", R"(^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$)"},
    {"email", R"(^[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63}){1,8}$)"},
    {"ipv4", R"(^((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)$)"},
};

Status wrong(Code code, const std::string& path, std::string_view what) {
  return Status(code, cat("schema", path.empty() ? "" : " at ", path, ": ", what));
}
Status invalid(const std::string& path, std::string_view what) {
  return wrong(Code::kInvalidArgument, path, what);
}

std::optional<int64_t> as_integer(const Value& v) {
  const py::Int* const x = v.if_int();
  int64_t out = 0;
  if (!x) return std::nullopt;
  const char* const end = x->digits.data() + x->digits.size();
  const auto [rest, error] = std::from_chars(x->digits.data(), end, out);
  if (error != std::errc() || rest != end) return std::nullopt;
  return out;
}

// A count that the schema may give.
Result<int64_t> count(const Value& schema, std::string_view key, int64_t otherwise,
                      const std::string& path) {
  const Value* const found = schema.find(key);
  if (!found) return otherwise;
  const auto n = as_integer(*found);
  if (!n || *n < 0) return invalid(path, cat(key, ": expected a count"));
  return *n;
}

Status check_keywords(const Value& schema, const std::string& path) {
  const auto known = [](auto& list, std::string_view key) {
    return std::find(std::begin(list), std::end(list), key) != std::end(list);
  };
  for (const py::Member& m : *schema.if_object()) {
    if (known(kKeywords, m.key) || known(kAnnotations, m.key)) continue;
    return wrong(Code::kUnsupported, path, cat("the keyword \"", m.key, "\" is not supported"));
  }
  return {};
}

}  // namespace

Result<Expr> JsonGrammar::schema(const Value& schema) {
  return part(schema, schema);
}

Result<Expr> JsonGrammar::part(const Value& root, const Value& schema) {
  root_ = &root;
  return compile(schema, "", 0);
}

Result<Expr> JsonGrammar::compile(const Value& schema, const std::string& path, int depth) {
  if (depth > kMaxNesting) return invalid(path, "nested too deep");
  if (const bool* all = schema.if_bool()) {
    return *all ? builder_.rule(any_value()) : builder_.nothing();
  }
  if (!schema.if_object()) return invalid(path, cat("expected an object, found ", schema.type_name()));
  DSV4_TRY(check_keywords(schema, path));
  if (const Value* ref = schema.find("$ref")) {
    if (!ref->if_string()) return invalid(path, "$ref: expected a string");
    return reference(*ref->if_string(), path, depth);
  }
  if (const Value* value = schema.find("const")) return literal_value(*value);
  if (const Value* values = schema.find("enum")) {
    const Value::Array* const list = values->if_array();
    if (!list || list->empty()) return invalid(path, "enum: expected a list of values");
    std::vector<Expr> all;
    for (const Value& value : *list) all.push_back(literal_value(value));
    return builder_.choice(all);
  }
  for (const std::string_view key : {"anyOf", "oneOf"}) {
    const Value* const found = schema.find(key);
    if (!found) continue;
    const Value::Array* const list = found->if_array();
    if (!list || list->empty()) return invalid(path, cat(key, ": expected a list of schemas"));
    std::vector<Expr> all;
    for (size_t i = 0; i < list->size(); ++i) {
      DSV4_ASSIGN(const Expr one, compile((*list)[i], cat(path, "/", key, "/", i), depth + 1));
      all.push_back(one);
    }
    return builder_.choice(all);
  }
  if (schema.find("allOf")) {
    DSV4_ASSIGN(const Value one, merged(schema, path));
    return compile(one, path, depth + 1);
  }
  const Value* const type = schema.find("type");
  if (!type) {
    for (const std::string_view key : {"properties", "required", "additionalProperties"}) {
      if (schema.find(key)) return typed("object", schema, path, depth);
    }
    for (const std::string_view key : {"items", "prefixItems", "minItems", "maxItems"}) {
      if (schema.find(key)) return typed("array", schema, path, depth);
    }
    for (const std::string_view key : {"minLength", "maxLength", "pattern", "format"}) {
      if (schema.find(key)) return typed("string", schema, path, depth);
    }
    return builder_.rule(any_value());
  }
  if (type->if_string()) return typed(*type->if_string(), schema, path, depth);
  const Value::Array* const list = type->if_array();
  if (!list || list->empty()) return invalid(path, "type: expected a name or a list of names");
  std::vector<Expr> all;
  for (const Value& name : *list) {
    if (!name.if_string()) return invalid(path, "type: expected names");
    DSV4_ASSIGN(const Expr one, typed(*name.if_string(), schema, path, depth));
    all.push_back(one);
  }
  return builder_.choice(all);
}

Result<Expr> JsonGrammar::typed(std::string_view type, const Value& schema, const std::string& path,
                                int depth) {
  if (type == "object") return object(schema, path, depth);
  if (type == "array") return array(schema, path, depth);
  if (type == "string") return string(schema, path);
  if (type == "integer") return integer(schema, path);
  if (type == "number") {
    for (const std::string_view key : {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}) {
      if (schema.find(key)) {
        return wrong(Code::kUnsupported, path, cat(key, " is supported for integers only"));
      }
    }
    return builder_.rule(value_rule("number"));
  }
  if (type == "boolean" || type == "null") return builder_.rule(value_rule(type));
  return invalid(path, cat("type: there is no \"", type, "\""));
}

// A rule of its own for each reference, so that a schema may refer to itself.
Result<Expr> JsonGrammar::reference(const std::string& ref, const std::string& path, int depth) {
  const std::string name = "$ref " + ref;
  if (const auto found = rules_.find(name); found != rules_.end()) return builder_.rule(found->second);
  if (!ref.starts_with('#')) {
    return wrong(Code::kUnsupported, path, cat("$ref \"", ref, "\": only references within the schema"));
  }
  const Value* at = root_;
  std::string_view rest = std::string_view(ref).substr(1);
  while (at && rest.starts_with('/')) {
    rest.remove_prefix(1);
    std::string key;
    for (; !rest.empty() && rest[0] != '/'; rest.remove_prefix(1)) {
      const bool escape = rest.starts_with("~0") || rest.starts_with("~1");
      key += escape ? (rest[1] == '0' ? '~' : '/') : rest[0];
      if (escape) rest.remove_prefix(1);
    }
    if (const Value::Array* list = at->if_array()) {
      size_t index = list->size();
      (void)std::from_chars(key.data(), key.data() + key.size(), index);
      at = index < list->size() ? &(*list)[index] : nullptr;
    } else {
      at = at->find(key);
    }
  }
  if (!at || !rest.empty()) return invalid(path, cat("$ref \"", ref, "\": there is no such place"));
  const int32_t rule = builder_.declare();
  rules_.emplace(name, rule);
  DSV4_ASSIGN(const Expr body, compile(*at, ref, depth + 1));
  builder_.define(rule, body);
  return builder_.rule(rule);
}

// allOf of object schemas: their properties together.
Result<Value> JsonGrammar::merged(const Value& schema, const std::string& path) {
  const Value::Array* const list = schema.find("allOf")->if_array();
  if (!list || list->empty()) return invalid(path, "allOf: expected a list of schemas");
  Value out = schema;
  out.erase("allOf");
  for (const Value& part : *list) {
    if (!part.if_object()) return invalid(path, "allOf: expected schemas that are objects");
    for (const py::Member& m : *part.if_object()) {
      const Value* const before = out.find(m.key);
      if (!before || m.key == "title" || m.key == "description") {
        out.set(m.key, m.value);
      } else if (m.key == "properties" && before->if_object() && m.value.if_object()) {
        Value both = *before;
        for (const py::Member& property : *m.value.if_object()) both.set(property.key, property.value);
        out.set(m.key, std::move(both));
      } else if (m.key == "required" && before->if_array() && m.value.if_array()) {
        Value::Array both = *before->if_array();
        both.insert(both.end(), m.value.if_array()->begin(), m.value.if_array()->end());
        out.set(m.key, Value(std::move(both)));
      } else if (py::dumps(*before) != py::dumps(m.value)) {
        return wrong(Code::kUnsupported, path,
                     cat("allOf: two parts say different things about \"", m.key, "\""));
      }
    }
  }
  return out;
}

Result<Expr> JsonGrammar::object(const Value& schema, const std::string& path, int depth) {
  const Value* const properties = schema.find("properties");
  const Value* const required = schema.find("required");
  const Value* const additional = schema.find("additionalProperties");
  if (properties && !properties->if_object()) return invalid(path, "properties: expected an object");
  if (required && !required->if_array()) return invalid(path, "required: expected a list of names");
  static const Value::Object kNone;
  const Value::Object& members = properties ? *properties->if_object() : kNone;
  const auto is_required = [&](std::string_view key) {
    if (!required) return false;
    const auto& list = *required->if_array();
    return std::any_of(list.begin(), list.end(), [&](const Value& v) {
      return v.if_string() && *v.if_string() == key;
    });
  };
  if (required) {
    for (const Value& name : *required->if_array()) {
      if (!name.if_string() || (properties && properties->find(*name.if_string()))) continue;
      return wrong(Code::kUnsupported, path,
                   cat("required: \"", *name.if_string(), "\" is not among the properties"));
    }
  }

  int32_t extra = -1;  // the rule of further members
  const bool closed = additional ? additional->if_bool() && !*additional->if_bool() : properties != nullptr;
  if (!closed) {
    Expr value = builder_.rule(any_value());
    if (additional && additional->if_object()) {
      DSV4_ASSIGN(value, compile(*additional, path + "/additionalProperties", depth + 1));
    }
    extra = builder_.make_rule(
        member(builder_.rule(value_rule("string")), builder_.make_rule(value)));
  }
  const auto comma = [&] { return builder_.sequence({builder_.literal(","), after_comma()}); };

  // From the last member to the first: what may follow from member i on, without and with a member
  // before it. Rules, so that optional members do not multiply.
  int32_t first = -1, later = -1;
  bool may_be_empty = true;  // of the part behind member i
  if (extra >= 0) {
    const int32_t more =
        builder_.make_rule(builder_.star(builder_.sequence({comma(), builder_.rule(extra)})));
    later = more;
    first = builder_.make_rule(builder_.sequence({builder_.rule(extra), builder_.rule(more)}));
  } else {
    later = builder_.make_rule(builder_.empty());
  }
  for (size_t i = members.size(); i-- > 0;) {
    const py::Member& m = members[i];
    DSV4_ASSIGN(const Expr value, compile(m.value, cat(path, "/properties/", m.key), depth + 1));
    const int32_t one = builder_.make_rule(
        member(builder_.literal(py::dumps(Value(m.key))), builder_.make_rule(value)));
    const int32_t behind = later, behind_first = first;
    const bool needed = is_required(m.key);
    const Expr with_comma = builder_.sequence({comma(), builder_.rule(one), builder_.rule(behind)});
    later = builder_.make_rule(
        needed ? with_comma : builder_.choice({with_comma, builder_.rule(behind)}));
    const Expr leading = builder_.sequence({builder_.rule(one), builder_.rule(behind)});
    first = builder_.make_rule(needed || behind_first < 0
                                   ? leading
                                   : builder_.choice({leading, builder_.rule(behind_first)}));
    may_be_empty = may_be_empty && !needed;
  }
  if (first < 0) return builder_.literal("{}");
  return braces(builder_.rule(first), may_be_empty);
}

Result<Expr> JsonGrammar::array(const Value& schema, const std::string& path, int depth) {
  DSV4_ASSIGN(const int64_t min, count(schema, "minItems", 0, path));
  DSV4_ASSIGN(const int64_t max, count(schema, "maxItems", -1, path));
  if (max >= 0 && max < min) return invalid(path, "maxItems is below minItems");
  const Value* const prefix = schema.find("prefixItems");
  const Value* const items = schema.find("items");
  std::vector<int32_t> head;
  if (prefix) {
    if (!prefix->if_array()) return invalid(path, "prefixItems: expected a list of schemas");
    for (const Value& item : *prefix->if_array()) {
      DSV4_ASSIGN(const Expr one, compile(item, cat(path, "/prefixItems/", head.size()), depth + 1));
      head.push_back(builder_.make_rule(one));
    }
  }
  int32_t item = any_value();
  if (items) {
    DSV4_ASSIGN(const Expr one, compile(*items, path + "/items", depth + 1));
    item = builder_.make_rule(one);
  }
  const auto n = static_cast<int64_t>(head.size());
  // Without `items`, an array with a prefix is that prefix.
  const int64_t most = prefix && !items ? (max < 0 ? n : std::min(n, max)) : max;
  if (most == 0) return builder_.literal("[]");
  const auto comma = [&] { return builder_.sequence({builder_.literal(","), after_comma()}); };
  const int32_t next = builder_.make_rule(builder_.sequence({comma(), builder_.rule(item)}));
  // From the last place of the prefix to the first, as with members.
  const int64_t tail_min = std::max<int64_t>(0, min - std::max<int64_t>(n, 1));
  const int64_t tail_max = most < 0 ? -1 : std::max<int64_t>(0, most - std::max<int64_t>(n, 1));
  Expr behind = builder_.repeat(next, tail_min, tail_max);
  for (int64_t i = n - 1; i > 0; --i) {
    const Expr with = builder_.sequence({comma(), builder_.rule(head[static_cast<size_t>(i)]), behind});
    const bool possible = most < 0 || i < most;
    behind = !possible ? builder_.empty() : i < min ? with : builder_.optional(with);
  }
  const Expr first = builder_.rule(n > 0 ? head[0] : item);
  const Expr full = builder_.sequence({builder_.literal("["), after_open(), first, behind,
                                       after_open(), builder_.literal("]")});
  return min > 0 ? full : builder_.choice({full, builder_.literal("[]")});
}

Result<Expr> JsonGrammar::string(const Value& schema, const std::string& path) {
  const Value* pattern = schema.find("pattern");
  Value of_format;
  if (const Value* format = schema.find("format"); format && !pattern && format->if_string()) {
    for (const Format& f : kFormats) {
      if (f.name == *format->if_string()) of_format = Value(f.pattern);
    }
    if (!of_format.is_null()) pattern = &of_format;
  }
  DSV4_ASSIGN(const int64_t min, count(schema, "minLength", 0, path));
  DSV4_ASSIGN(const int64_t max, count(schema, "maxLength", -1, path));
  if (max >= 0 && max < min) return invalid(path, "maxLength is below minLength");
  if (!pattern) return quoted(builder_.repeat(value_rule("character"), min, max));
  if (!pattern->if_string()) return invalid(path, "pattern: expected a string");
  if ((min > 0 || max >= 0) && of_format.is_null()) {
    return wrong(Code::kUnsupported, path, "a length beside a pattern; put it into the pattern");
  }
  auto inside = regex_expr(builder_, *pattern->if_string(),
                           {.search = true, .write = JsonGrammar::string_character});
  if (!inside.ok()) return inside.status().with_context(cat("schema at ", path));
  return quoted(*inside);
}

Result<Expr> JsonGrammar::integer(const Value& schema, const std::string& path) {
  constexpr int64_t kLimit = 999'999'999'999'999'999;
  std::optional<int64_t> low, high;
  const auto read = [&](std::string_view key, int64_t shift, bool is_low) -> Status {
    const Value* const found = schema.find(key);
    if (!found) return {};
    std::optional<int64_t> x = as_integer(*found);
    // 5.0 is an integer too.
    const double* const d = found->if_float();
    if (d && std::abs(*d) < 1e15 && *d == std::trunc(*d)) x = static_cast<int64_t>(*d);
    if (!x || *x > kLimit || *x < -kLimit) {
      return invalid(path, cat(key, ": expected an integer of at most 18 digits"));
    }
    *x += shift;
    if (is_low) low = std::max(low.value_or(-kLimit), *x);
    if (!is_low) high = std::min(high.value_or(kLimit), *x);
    return {};
  };
  DSV4_TRY(read("minimum", 0, true));
  DSV4_TRY(read("exclusiveMinimum", 1, true));
  DSV4_TRY(read("maximum", 0, false));
  DSV4_TRY(read("exclusiveMaximum", -1, false));
  if (!low && !high) return builder_.rule(value_rule("integer"));
  const int64_t a = low.value_or(-kLimit), b = high.value_or(kLimit);
  if (a > b) return invalid(path, "maximum is below minimum");
  std::vector<Expr> all;
  if (a < 0) {
    all.push_back(builder_.sequence(
        {builder_.literal("-"), integer_between(std::to_string(std::max<int64_t>(1, -b)), std::to_string(-a))}));
  }
  if (b >= 0) {
    all.push_back(integer_between(std::to_string(std::max<int64_t>(0, a)), std::to_string(b)));
  }
  return builder_.choice(all);
}

// Decimal integers from `low` to `high`, both without sign and leading zeros.
Expr JsonGrammar::integer_between(std::string_view low, std::string_view high) {
  GrammarBuilder& b = builder_;
  const auto digit = [&](char x, char y) {
    return b.byte_range(static_cast<uint8_t>(x), static_cast<uint8_t>(y));
  };
  // Of the same length: digit by digit, as with UTF-8.
  const auto same = [&](auto&& self, std::string_view lo, std::string_view hi) -> Expr {
    if (lo.size() == 1) return digit(lo[0], hi[0]);
    const std::string zeros(lo.size() - 1, '0'), nines(lo.size() - 1, '9');
    const std::string_view lo_rest = lo.substr(1), hi_rest = hi.substr(1);
    if (lo[0] == hi[0]) return b.sequence({digit(lo[0], lo[0]), self(self, lo_rest, hi_rest)});
    std::vector<Expr> all;
    char from = lo[0], to = hi[0];
    if (lo_rest != zeros) {
      all.push_back(b.sequence({digit(from, from), self(self, lo_rest, nines)}));
      ++from;
    }
    if (hi_rest != nines) {
      all.push_back(b.sequence({digit(to, to), self(self, zeros, hi_rest)}));
      --to;
    }
    if (from <= to) all.push_back(b.sequence({digit(from, to), self(self, zeros, nines)}));
    return b.choice(all);
  };
  if (low.size() == high.size()) return same(same, low, high);
  std::vector<Expr> all;
  for (size_t n = low.size(); n <= high.size(); ++n) {
    const std::string least = n == low.size() ? std::string(low) : "1" + std::string(n - 1, '0');
    const std::string most = n == high.size() ? std::string(high) : std::string(n, '9');
    all.push_back(same(same, least, most));
  }
  return b.choice(all);
}

}  // namespace dsv4
