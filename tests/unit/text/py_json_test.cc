#include "text/py_json.h"

#include <gtest/gtest.h>

namespace dsv4::py {
namespace {

// json.dumps(json.loads(text), ensure_ascii=False)
std::string again(std::string_view text) {
  const auto value = loads(text);
  return value.ok() ? dumps(*value) : "error: " + value.status().message();
}

TEST(PyJson, NumbersAsPythonPrintsThem) {
  const std::pair<const char*, const char*> cases[] = {
      {"0", "0"},
      {"-0", "0"},
      {"-0.0", "-0.0"},
      {"1.10", "1.1"},
      {"1e5", "100000.0"},
      {"1e15", "1000000000000000.0"},
      {"1e16", "1e+16"},
      {"123456789012345678.0", "1.2345678901234568e+17"},
      {"0.0001", "0.0001"},
      {"1e-5", "1e-05"},
      {"1e-7", "1e-07"},
      {"1.5e-7", "1.5e-07"},
      {"1E+2", "100.0"},
      {"12.5", "12.5"},
      {"1e400", "Infinity"},
      {"-1e400", "-Infinity"},
      {"1e-400", "0.0"},
      {"-1e-400", "-0.0"},
      {"0.1e-99999999999999999999", "0.0"},
      {"1e99999999999999999999", "Infinity"},
      {"0e99999999999999999999", "0.0"},
      {"5e-324", "5e-324"},
      {"1.7976931348623157e308", "1.7976931348623157e+308"},
      {"92816060776268825400", "92816060776268825400"},
      {"-123456789012345678901234567890", "-123456789012345678901234567890"},
      {"NaN", "NaN"},
      {"Infinity", "Infinity"},
      {"-Infinity", "-Infinity"},
  };
  for (const auto& [text, expected] : cases) EXPECT_EQ(again(text), expected) << text;
  const std::string zeros = "0." + std::string(400, '0') + "1e400";
  EXPECT_EQ(again(zeros), "0.1");
  EXPECT_EQ(again("1" + std::string(400, '0') + "e-400"), "1.0");
  EXPECT_EQ(again(std::string(4300, '9')), std::string(4300, '9'));
  EXPECT_FALSE(loads(std::string(4301, '9')).ok());
}

TEST(PyJson, StringsAndContainers) {
  EXPECT_EQ(again(R"({"b":1,"a":[ ],"c":{ }})"), R"({"b": 1, "a": [], "c": {}})");
  EXPECT_EQ(again(R"({"a":1,"b":2,"a":3})"), R"({"a": 3, "b": 2})");
  EXPECT_EQ(again(R"("\u00e9\ud83d\ude42\/\u0001\b\f\n\r\t\"\\")"),
            "\"\u00e9\U0001F642/\\u0001\\b\\f\\n\\r\\t\\\"\\\\\"");
  EXPECT_EQ(again("\"\x7f\""), "\"\x7f\"");
  EXPECT_EQ(again(" [true , false,null ] \n"), "[true, false, null]");
}

TEST(PyJson, RepeatedKeysInLargeObjects) {
  std::string text = "{";
  for (int i = 0; i < 40; ++i)
    text += "\"k" + std::to_string(i % 30) + "\": " + std::to_string(i) + ",";
  text += "\"k3\": \"last\"}";
  const auto value = loads(text);
  ASSERT_TRUE(value.ok());
  ASSERT_EQ(value->if_object()->size(), 30u);
  EXPECT_EQ((*value->if_object())[3].key, "k3");
  EXPECT_EQ(*value->find("k3")->if_string(), "last");
  EXPECT_EQ(value->find("k5")->if_int()->digits, "35");
  EXPECT_EQ(value->find("k29")->if_int()->digits, "29");
}

TEST(PyJson, WhatPythonRefuses) {
  for (const char* text : {"",
                           "nul",
                           "01",
                           "1.",
                           ".5",
                           "-",
                           "+1",
                           "1e",
                           "Inf",
                           "-NaN",
                           "[1,]",
                           "{\"a\":1,}",
                           "{a:1}",
                           "'a'",
                           "\"a",
                           "\"\n\"",
                           "\"\\x\"",
                           "\"\\u12g4\"",
                           "[1 2]",
                           "{\"a\" 1}",
                           "1 1",
                           "\xEF\xBB\xBF"
                           "1",
                           "[",
                           "{\"a\":",
                           "\"\xC0\x80\"",
                           "\"\xED\xA0\x80\""}) {
    const auto value = loads(text);
    ASSERT_FALSE(value.ok()) << text;
    EXPECT_EQ(value.status().code(), Code::kCorrupt) << text;
    EXPECT_EQ(value.status().message().find('\n'), std::string::npos);
  }
  EXPECT_FALSE(loads(std::string_view("1\0", 2)).ok());
  EXPECT_EQ(loads("[1,\n 2,\n x]").status().message(),
            "JSON at line 3 column 2: expected a value, found 'x'");
}

TEST(PyJson, WhatUtf8OrTheStackCannotHold) {
  for (const char* text : {R"("\ud800")", R"("\udc00")", R"("\ud800\u0041")", R"("\ud800x")"}) {
    EXPECT_EQ(loads(text).status().code(), Code::kUnsupported) << text;
  }
  EXPECT_EQ(loads(std::string(1'000'000, '[')).status().code(), Code::kUnsupported);
  const std::string deep = std::string(kMaxDepth, '[') + std::string(kMaxDepth, ']');
  EXPECT_EQ(again(deep), deep);
}

TEST(PyJson, Truth) {
  for (const char* text : {"null", "false", "0", "0.0", "-0.0", "\"\"", "[]", "{}"}) {
    EXPECT_FALSE(loads(text)->truthy()) << text;
  }
  for (const char* text : {"true", "1", "0.5", "NaN", "\"0\"", "[0]", "{\"a\": null}"}) {
    EXPECT_TRUE(loads(text)->truthy()) << text;
  }
}

}  // namespace
}  // namespace dsv4::py
