#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "text/chat_format.h"
#include "text/grammar_automaton.h"
#include "text/json_grammar.h"
#include "text/regex.h"
#include "text/tool_grammar.h"

namespace dsv4 {
namespace {

// The demo model's: the markers of the format and some thousand words.
const Tokenizer& tokenizer() {
  static const Tokenizer made = std::move(Tokenizer::load("models/demo/tokenizer.json")).value();
  return made;
}
int32_t eos() {
  return *tokenizer().token_id(chat::kEos);
}

std::shared_ptr<const TokenTable> table() {
  static const auto made = std::make_shared<const TokenTable>(tokenizer(), tokenizer().vocab_size());
  return made;
}

// What the grammar says of a text that has no markers.
enum class Fit { kNo, kBegins, kWhole };
Fit fit(Grammar grammar, std::string_view text) {
  GrammarAutomaton a(std::move(grammar), table(), eos());
  const auto state = a.step(a.start(), text);
  if (state == GrammarAutomaton::kDead) return Fit::kNo;
  return a.may_end(state) ? Fit::kWhole : Fit::kBegins;
}

Grammar regex(std::string_view pattern) {
  auto made = regex_grammar(pattern);
  EXPECT_TRUE(made.ok()) << pattern << ": " << made.status().message();
  return std::move(made).value();
}

Grammar schema(std::string_view json) {
  auto made = json_schema_grammar(*py::loads(json));
  EXPECT_TRUE(made.ok()) << json << ": " << made.status().message();
  return std::move(made).value();
}

void expect_fits(const std::function<Grammar()>& make, std::vector<std::string> whole,
                 std::vector<std::string> begin, std::vector<std::string> no) {
  for (const auto& text : whole) EXPECT_EQ(fit(make(), text), Fit::kWhole) << text;
  for (const auto& text : begin) EXPECT_EQ(fit(make(), text), Fit::kBegins) << text;
  for (const auto& text : no) EXPECT_EQ(fit(make(), text), Fit::kNo) << text;
}

TEST(Regex, Matches) {
  expect_fits([] { return regex("a(b|cd)*e?"); }, {"a", "ab", "abcdbe"}, {"ac"}, {"b", "ae!", "aee"});
  expect_fits([] { return regex("[a-c\\d-]{2,3}"); }, {"a1", "--c"}, {"", "b"}, {"d", "a1b2"});
  expect_fits([] { return regex("[^a]é\\u00e9\\.$"); }, {"béé."}, {"é"}, {"a", "béé,"});
  expect_fits([] { return regex("\\w+@\\w+"); }, {"a@b"}, {"a@", "a"}, {"@"});
  expect_fits([] { return regex("(?:x{0,2}){2}"); }, {"", "xxxx"}, {}, {"xxxxx"});
  // Ranges that cross the lengths of UTF-8.
  expect_fits([] { return regex("[\\u007f-\\u0800]+"); }, {"\x7f", "ࠀ", "é߿"}, {"\xC3"}, {"~", "ࠁ"});
  expect_fits([] { return regex("."); }, {"語", "😀", "a"}, {"\xF0\x9F"}, {"\n", "ab", "\xFF"});
}

TEST(Regex, Refuses) {
  for (const char* pattern : {"(", ")", "[", "a{2", "a{3,2}", "*a", "(?=a)", "(?!a)", "\\1", "\\bx", "a^b", "x{99999}",
                              "[b-a]", "\\", "\\u12", "a**"}) {
    EXPECT_FALSE(regex_grammar(pattern).ok()) << pattern;
  }
  // Counts multiply.
  std::string pattern;
  for (int i = 0; i < 50; ++i) pattern += "[a-z]{9999}";
  EXPECT_FALSE(regex_grammar(pattern).ok());
}

TEST(Choice, IsOneOfThem) {
  const auto make = [] { return *choice_grammar({"yes", "no", "not now"}); };
  expect_fits(make, {"yes", "no", "not now"}, {"", "ye", "not"}, {"yess", "maybe"});
  EXPECT_FALSE(choice_grammar({}).ok());
}

TEST(Json, AnyObject) {
  const auto make = [] { return *json_object_grammar(); };
  expect_fits(make,
              {"{}", R"({"a":1})", R"({"a": [1, -2.5e3, "x\n\u0007", null, true, {}]})", "{\n  \"k\": []\n}",
               R"({"語":"😀"})"},
              {"{", R"({"a)", R"({"a":)", R"({"a":1)", R"({"a":"\)"},
              {"[", "1", R"({"a":01)", R"({"a":1,})", R"({a)", R"({"a":")" "\n", R"({"a":tru )", "{} "});
}

TEST(Json, SchemaOfObjects) {
  const auto make = [] {
    return schema(R"({"type": "object", "properties": {"name": {"type": "string", "maxLength": 3},
      "age": {"type": "integer", "minimum": -5, "maximum": 120}, "tags": {"type": "array",
      "items": {"enum": ["a", 1, null]}, "minItems": 1, "maxItems": 2}}, "required": ["name", "tags"]})");
  };
  expect_fits(make,
              {R"({"name":"abc","tags":["a"]})", R"({"name": "é\n", "age": 120, "tags": [1, null]})",
               R"({"name":"","age":-5,"tags":["a","a"]})"},
              {R"({"name":"ab")", R"({"name":"a","age":12)"},
              {"{}", R"({"age")", R"({"name":"abcd)", R"({"name":"a","age":121)", R"({"name":"a","age":-6)",
               R"({"name":"a","tags":[])", R"({"name":"a","tags":["a","a",)", R"({"name":"a","x")",
               R"({"name":"a","age":05)"});
}

TEST(Json, SchemaForms) {
  expect_fits([] { return schema(R"({"anyOf": [{"type": "boolean"}, {"const": "x"}]})"); }, {"true", "\"x\""}, {"t"}, {"\"y", "1"});
  expect_fits([] { return schema(R"({"type": ["null", "integer"]})"); }, {"null", "-12"}, {"-"}, {"1.", "\""});
  expect_fits([] { return schema(R"({"type": "string", "pattern": "^a\"+$"})"); }, {R"("a\"")"}, {R"("a)"}, {R"("a")", R"("b)"});
  expect_fits([] { return schema(R"({"type": "string", "pattern": "b"})"); }, {R"("abc")", R"("b")"}, {R"("a)"}, {R"("ac")"});
  expect_fits([] { return schema(R"({"type": "string", "format": "date"})"); }, {R"("2024-02-29")"}, {"\"2024-"}, {"\"2024-13"});
  expect_fits([] { return schema(R"({"prefixItems": [{"type": "integer"}, {"type": "string"}]})"); },
              {"[]", "[1]", R"([1, "a"])"}, {"[1,"}, {"[\"a", R"([1, "a",)"});
  expect_fits([] { return schema(R"({"additionalProperties": {"type": "integer"}})"); }, {"{}", R"({"x":1,"y":2})"}, {}, {R"({"x":"a)"});
  expect_fits([] { return schema(R"({"allOf": [{"properties": {"a": {"type": "null"}}}, {"properties": {"b": {"type": "null"}}, "required": ["b"]}]})"); },
              {R"({"b":null})", R"({"a":null,"b":null})"}, {R"({"a":null)"}, {"{}"});
  expect_fits([] { return schema("true"); }, {"1", "{}", "[[[]]]"}, {"["}, {"]"});
  for (const auto& [low, high] : {std::pair{7, 7}, {-3, 12}, {0, 1999}, {95, 1005}, {-120, -8}}) {
    const std::string text = "{\"type\":\"integer\",\"minimum\":" + std::to_string(low) + ",\"maximum\":" + std::to_string(high) + "}";
    for (int x = -130; x <= 2100; ++x) {
      ASSERT_EQ(fit(schema(text), std::to_string(x)) == Fit::kWhole, low <= x && x <= high) << text << x;
    }
  }
}

TEST(Json, SchemasThatReferToThemselves) {
  const auto make = [] {
    return schema(R"({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {
      "value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
      "required": ["value", "next"]}}})");
  };
  expect_fits(make, {R"({"value":1,"next":null})", R"({"value":1,"next":{"value":2,"next":null}})"},
              {R"({"value":1,"next":{)"}, {R"({"value":1,"next":[)"});
}

TEST(Json, SchemasThatCannotBeHeld) {
  for (const char* text : {R"({"type": "king"})", R"({"type": "object", "minProperties": 1})", R"({"not": {}})",
                           R"({"type": "number", "minimum": 1})", R"({"$ref": "#/nowhere"})", R"({"$ref": "http://x"})",
                           R"({"enum": []})", R"({"type": "string", "pattern": "("})", R"(5)", R"({"anyOf": 1})",
                           R"({"type": "array", "minItems": 3, "maxItems": 2})", R"({"required": ["x"], "properties": {}})",
                           R"({"type": "string", "maxLength": 999999999})", R"({"multipleOf": 2})"}) {
    EXPECT_FALSE(json_schema_grammar(*py::loads(text)).ok()) << text;
  }
}

// The mask is what stepping token by token says, for every token and at every place of a text.
TEST(Mask, AgreesWithSteps) {
  GrammarAutomaton a(schema(R"({"properties": {"the": {"type": "string"}, "n": {"type": "integer"}}})"), table(), eos());
  auto state = a.start();
  for (const char c : std::string(R"({"the": "in 語 \" er", "n": 10})")) {
    const auto mask = a.allowed(state);
    for (int32_t id = 0; id < tokenizer().vocab_size(); ++id) {
      const bool allowed = (*mask)[static_cast<size_t>(id) / 64] >> (id % 64) & 1;
      const bool expected = id == eos()                ? a.may_end(state)
                            : tokenizer().is_added(id) ? false
                                                       : a.step_token(state, id) != GrammarAutomaton::kDead;
      ASSERT_EQ(allowed, expected) << id << " before " << c;
    }
    state = a.step(state, std::string_view(&c, 1));
  }
  EXPECT_TRUE(a.may_end(state));
}

TEST(Json, DeepNestingEnds) {
  GrammarAutomaton a(*json_object_grammar(), table(), eos());
  auto state = a.step(a.start(), "{\"a\":");
  for (int i = 0; i < 5000 && state != GrammarAutomaton::kDead; ++i) state = a.step(state, "[");
  EXPECT_EQ(state, GrammarAutomaton::kDead);
}

TEST(Automaton, AmbiguityHasAnEnd) {
  // Alternatives of itself, and of things that begin alike.
  expect_fits([] { return schema(R"({"anyOf": [{"$ref": "#"}, {"$ref": "#"}, {"type": "integer"}]})"); }, {"12"}, {"-"}, {"x"});
  GrammarAutomaton twice(schema(R"({"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"type": "array", "items": {"$ref": "#"}}]})"),
                         table(), eos());
  EXPECT_TRUE(twice.may_end(twice.step(twice.start(), "[[[]]]")));
  EXPECT_EQ(twice.step(twice.start(), std::string(200, '[')), GrammarAutomaton::kDead);
  GrammarAutomaton maybe(regex("(a?){9000}b"), table(), eos());
  EXPECT_EQ(maybe.start(), GrammarAutomaton::kDead);
}

class Tools : public testing::Test {
 protected:
  // '|' stands for the marker token.
  Fit fits(const std::vector<chat::ToolSpec>& tools, std::string_view text, bool one_call = false) {
    GrammarBuilder b;
    const int32_t dsml = *tokenizer().token_id(chat::kDsml);
    auto expr = chat::tool_calls_expr(b, tools, {.dsml_token = dsml, .one_call = one_call});
    EXPECT_TRUE(expr.ok()) << expr.status().message();
    GrammarAutomaton a(*b.build(b.make_rule(*expr)), table(), eos());
    auto state = a.start();
    for (const char c : text) {
      if (state == GrammarAutomaton::kDead) return Fit::kNo;
      state = c == '|' ? a.step_token(state, dsml) : a.step(state, std::string_view(&c, 1));
    }
    if (state == GrammarAutomaton::kDead) return Fit::kNo;
    return a.may_end(state) ? Fit::kWhole : Fit::kBegins;
  }
};

TEST_F(Tools, AnyArguments) {
  const std::vector<chat::ToolSpec> tools = {{.name = "f", .parameters = {}, .strict = false}};
  const std::string call = "<|invoke name=\"f\">\n<|parameter name=\"x\" string=\"true\">a <b> \"</|parameter>\n"
                           "<|parameter name=\"y\" string=\"false\">[1]</|parameter>\n</|invoke>\n";
  EXPECT_EQ(fits(tools, "tool_calls>\n" + call + "</|tool_calls>"), Fit::kWhole);
  EXPECT_EQ(fits(tools, "tool_calls>\n" + call + call + "</|tool_calls>"), Fit::kWhole);
  EXPECT_EQ(fits(tools, "tool_calls>\n" + call + "<", true), Fit::kBegins);
  EXPECT_EQ(fits(tools, "tool_calls>\n" + call + "<|i", true), Fit::kNo);
  EXPECT_EQ(fits(tools, "tool_calls>\n<|invoke name=\"f\">\n</|invoke>\n</|tool_calls>"), Fit::kWhole);
  EXPECT_EQ(fits(tools, "tool_calls>\n<|invoke name=\"f\">\n\n</|invoke>\n</|tool_calls>"), Fit::kWhole);
  EXPECT_EQ(fits(tools, "tool_calls>\n<|invoke name=\"g"), Fit::kNo);
  EXPECT_EQ(fits(tools, "tool_calls>\n</|tool"), Fit::kNo);
  EXPECT_EQ(fits(tools, "tool_calls>\n<|invoke name=\"f\">\n<|parameter name=\"y\" string=\"false\">[1<"), Fit::kNo);
  // Text that spells the marker is not the marker, and raw text cannot spell it.
  EXPECT_EQ(fits(tools, "tool_calls>\n<|invoke name=\"f\">\n<|parameter name=\"x\" string=\"true\">a\xEF\xBD\x9C"), Fit::kNo);
}

TEST_F(Tools, StrictArguments) {
  const std::vector<chat::ToolSpec> tools = {
      {.name = "f",
       .parameters = *py::loads(R"({"type": "object", "properties": {"city": {"type": "string"},
         "unit": {"enum": ["C", "F"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["city"]})"),
       .strict = true}};
  const auto call = [](const std::string& parameters) {
    return "tool_calls>\n<|invoke name=\"f\">\n" + parameters + "</|invoke>\n</|tool_calls>";
  };
  const std::string city = "<|parameter name=\"city\" string=\"true\">Rome</|parameter>\n";
  const std::string unit = "<|parameter name=\"unit\" string=\"true\">C</|parameter>\n";
  const std::string days = "<|parameter name=\"days\" string=\"false\">9</|parameter>\n";
  EXPECT_EQ(fits(tools, call(city)), Fit::kWhole);
  EXPECT_EQ(fits(tools, call(city + unit + days)), Fit::kWhole);
  EXPECT_EQ(fits(tools, call(city + days)), Fit::kWhole);
  EXPECT_EQ(fits(tools, call(unit)), Fit::kNo);
  EXPECT_EQ(fits(tools, call("")), Fit::kNo);
  EXPECT_EQ(fits(tools, call(city + "<|parameter name=\"days\" string=\"false\">10</|parameter>\n")), Fit::kNo);
  EXPECT_EQ(fits(tools, call(city + "<|parameter name=\"unit\" string=\"true\">K</|parameter>\n")), Fit::kNo);
}

}  // namespace
}  // namespace dsv4
