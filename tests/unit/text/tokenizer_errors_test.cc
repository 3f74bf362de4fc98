// Broken tokenizer files: one line that names the file and the field, never a crash.
#include <gtest/gtest.h>

#include "small_tokenizer.h"
#include "text/splitter.h"
#include "text/tokenizer.h"

namespace dsv4 {
namespace {

void expect_error(const std::string& json, const std::string& mentions) {
  const auto t = Tokenizer::from_json(json, "broken.json");
  ASSERT_FALSE(t.ok()) << mentions;
  const std::string& message = t.status().message();
  EXPECT_EQ(message.rfind("broken.json: ", 0), 0u) << message;
  EXPECT_NE(message.find(mentions), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

py::Value& at(py::Value& object, std::string_view key) {
  for (py::Member& m : *object.if_object()) {
    if (m.key == key) return m.value;
  }
  ADD_FAILURE() << "no member " << key;
  return object;
}

TEST(BrokenTokenizer, NotJson) {
  expect_error("", "expected a value");
  expect_error("{\"model\": ", "line 1");
  expect_error("[]", "expected an object");
  expect_error("\xFF", "UTF-8");
  expect_error(std::string(100000, '['), "nested deeper");
  const std::string good = py::dumps(small_tokenizer());
  for (size_t size = 0; size < good.size(); size += 37) {
    EXPECT_FALSE(Tokenizer::from_json(good.substr(0, size), "cut.json").ok());
  }
}

TEST(BrokenTokenizer, MissingFields) {
  for (const char* field : {"model", "pre_tokenizer"}) {
    py::Value json = small_tokenizer();
    json.erase(field);
    expect_error(py::dumps(json), field);
  }
  for (const char* field : {"type", "vocab", "merges"}) {
    py::Value json = small_tokenizer();
    at(json, "model").erase(field);
    expect_error(py::dumps(json), std::string("model.") + field);
  }
  for (const char* field : {"id", "content"}) {
    py::Value json = small_tokenizer();
    (*at(json, "added_tokens").if_array())[1].erase(field);
    expect_error(py::dumps(json), std::string("added_tokens[1].") + field);
  }
}

TEST(BrokenTokenizer, Ids) {
  const auto with_id = [](py::Value id) {
    py::Value json = small_tokenizer();
    at(at(json, "model"), "vocab").set("hello", std::move(id));
    return py::dumps(json);
  };
  expect_error(with_id(-1), "model.vocab[\"hello\"]");
  expect_error(with_id(1 << 30), "model.vocab[\"hello\"]");
  expect_error(with_id(py::Value(py::Int{"99999999999999999999"})), "model.vocab[\"hello\"]");
  expect_error(with_id("5"), "a string");
  expect_error(with_id(5), "another token");
  py::Value json = small_tokenizer();
  (*at(json, "added_tokens").if_array())[4].set("id", 7);
  expect_error(py::dumps(json), "added_tokens[4].id");
  json = small_tokenizer();
  (*at(json, "added_tokens").if_array())[0].set("id", 1);
  expect_error(py::dumps(json), "added_tokens[0].id");
}

TEST(BrokenTokenizer, Merges) {
  for (const char* merge : {"h zz", "zz h", "w w", "h", "a b c", " a", ""}) {
    py::Value json = small_tokenizer();
    at(at(json, "model"), "merges").if_array()->push_back(merge);
    expect_error(py::dumps(json), "model.merges[12]");
  }
  py::Value json = small_tokenizer();
  at(at(json, "model"), "merges").if_array()->push_back(py::Value::array({"a"}));
  expect_error(py::dumps(json), "model.merges[12]");
}

TEST(BrokenTokenizer, WhatWouldChangeIdsIsRefused) {
  py::Value json = small_tokenizer();
  json.set("normalizer", py::Value::object({{"type", "NFC"}}));
  expect_error(py::dumps(json), "normalizer");

  for (const char* pattern : {"(", "[a-", "a{2,1}", "[a&&b]", "[a[b]]", "\\p{Nonsense}"}) {
    json = small_tokenizer();
    at(at(json, "pre_tokenizer"), "pretokenizers")
        .if_array()
        ->insert(at(at(json, "pre_tokenizer"), "pretokenizers").if_array()->begin(),
                 split_step(pattern));
    expect_error(py::dumps(json), "pre_tokenizer.pretokenizers[0].pattern.Regex");
  }
  json = small_tokenizer();
  at(at(json, "pre_tokenizer"), "pretokenizers").if_array()->front().set("behavior", "Removed");
  expect_error(py::dumps(json), "behavior");
  json = small_tokenizer();
  (*at(json, "added_tokens").if_array())[3].set("lstrip", true);
  expect_error(py::dumps(json), "added_tokens[3].lstrip");
  json = small_tokenizer();
  at(json, "model").set("type", "Unigram");
  expect_error(py::dumps(json), "model.type");
}

TEST(BrokenTokenizer, Files) {
  EXPECT_EQ(Tokenizer::load("no/such/tokenizer.json").status().code(), Code::kNotFound);
  const auto folder = Tokenizer::load("tests");
  ASSERT_FALSE(folder.ok());
  EXPECT_NE(folder.status().message().find("directory"), std::string::npos);
}

TEST(BrokenTokenizer, AByteWithoutATokenIsAnErrorOfTheText) {
  py::Value json = small_tokenizer();
  at(at(json, "model"), "vocab").erase("!");
  const auto t = Tokenizer::from_json(py::dumps(json), "holes.json");
  ASSERT_TRUE(t.ok()) << t.status().message();
  EXPECT_FALSE(t->encode("hello!").ok());
  EXPECT_TRUE(t->encode("hello").ok());
}

TEST(Splitter, RunawayExpressionsStop) {
  auto splitter = Splitter::compile("(a+)+$", false);
  ASSERT_TRUE(splitter.ok());
  const std::string text = std::string(60, 'a') + "b";
  std::vector<std::string_view> pieces;
  EXPECT_FALSE(splitter->split({text}, pieces).ok());
}

TEST(Splitter, EmptyMatchesSeparate) {
  auto splitter = Splitter::compile("(?=b)", false);
  ASSERT_TRUE(splitter.ok());
  std::vector<std::string_view> pieces;
  ASSERT_TRUE(splitter->split({"aab\u00e9b"}, pieces).ok());
  EXPECT_EQ(pieces, (std::vector<std::string_view>{"aa", "b\u00e9", "b"}));
}

TEST(Splitter, LiteralPatternsAreNotExpressions) {
  auto splitter = Splitter::compile(".", true);
  ASSERT_TRUE(splitter.ok());
  std::vector<std::string_view> pieces;
  ASSERT_TRUE(splitter->split({"a.b"}, pieces).ok());
  EXPECT_EQ(pieces, (std::vector<std::string_view>{"a", ".", "b"}));
}

}  // namespace
}  // namespace dsv4
