// Headers: what is accepted, and that everything else is one line of error.
#include "checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <string>

#include "base/str.h"

namespace dsv4 {
namespace {

std::string image(std::string_view json, size_t data_bytes) {
  std::string out(8, '\0');
  for (size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(json.size() >> (8 * i));
  out += json;
  out.append(data_bytes, 'x');
  return out;
}

Result<SafetensorsHeader> parse(const std::string& bytes, SafetensorsOptions options = {}) {
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  return parse_safetensors_header("a.safetensors", {data, bytes.size()}, bytes.size(), options);
}

// The error of a header that must be refused: one line that names the file.
std::string refused(std::string_view json, size_t data_bytes) {
  const auto result = parse(image(json, data_bytes));
  if (result.ok()) return "accepted";
  const std::string& line = result.status().message();
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_EQ(line.rfind("a.safetensors: ", 0), 0u) << line;
  return line;
}

bool has(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}
#define EXPECT_HAS(text, part) EXPECT_TRUE(has(text, part)) << (text)

constexpr char kTwo[] =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[2,10]},)"
    R"("a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}}   )";

TEST(SafetensorsHeader, TensorsInFileOrder) {
  const auto result = parse(image(kTwo, 10));
  ASSERT_TRUE(result.ok()) << result.status().message();
  ASSERT_EQ(result->entries.size(), 2u);
  const TensorEntry& a = result->entries[0];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.shape, Shape{});
  EXPECT_EQ(a.bytes, 2u);
  const TensorEntry& b = result->entries[1];
  EXPECT_EQ(b.dtype, DType::kF32);
  EXPECT_EQ(b.shape, (Shape{2, 1}));
  EXPECT_EQ(b.offset, result->data_begin + 2);
  ASSERT_EQ(result->metadata.size(), 1u);
  EXPECT_EQ(result->metadata[0].second, "pt");
}

TEST(SafetensorsHeader, EmptyFileOfNoTensors) {
  EXPECT_TRUE(parse(image("{}", 0)).ok());
  EXPECT_TRUE(
      parse(image(R"({"z":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]}})", 0)).ok());
}

TEST(SafetensorsHeader, TruncatedAndPaddedFiles) {
  EXPECT_HAS(refused(kTwo, 9), "truncated: expected");
  EXPECT_HAS(refused(kTwo, 11), "expected");
  SafetensorsOptions headers_only;
  headers_only.allow_header_only = true;
  EXPECT_TRUE(parse(image(kTwo, 0), headers_only).ok());
  EXPECT_FALSE(parse(image(kTwo, 11), headers_only).ok());
  // Every shorter prefix is an error, never a crash.
  const std::string whole = image(kTwo, 10);
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_FALSE(parse(whole.substr(0, n)).ok()) << n;
}

TEST(SafetensorsHeader, BadLengths) {
  EXPECT_HAS(parse("").status().message(), "found 0 bytes");
  EXPECT_FALSE(parse(std::string(8, '\0')).ok());
  EXPECT_FALSE(parse(std::string(8, '\xff') + "{}").ok());
  std::string longer = image("{}", 0);
  longer[0] = 3;
  EXPECT_FALSE(parse(longer).ok());
}

TEST(SafetensorsHeader, BadJson) {
  EXPECT_HAS(refused("<html>", 0), "expected '{'");
  EXPECT_HAS(refused("{\"a\":", 0), "invalid JSON");
  EXPECT_HAS(refused("{} x", 0), "invalid JSON");
  EXPECT_HAS(refused(std::string_view("{}\0{}", 5), 0), "a NUL in the JSON");
  EXPECT_HAS(refused("{\"\xff\":1}", 0), "invalid JSON");
  std::string deep = "{\"a\":";
  for (int i = 0; i < 100000; ++i) deep += "[";
  EXPECT_HAS(refused(deep, 0), "an unexpected list");
}

TEST(SafetensorsHeader, BadEntries) {
  EXPECT_HAS(refused(R"({"a":1})", 0), "a: an unexpected number");
  EXPECT_HAS(refused(R"({"a":{}})", 0), "missing");
  EXPECT_HAS(refused(R"({"a":{"dtype":"F5","shape":[],"data_offsets":[0,1]}})", 1), "\"F5\"");
  EXPECT_HAS(refused(R"({"a":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}})", 1),
             "twice");
  EXPECT_HAS(refused(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1), "a: expected");
  EXPECT_HAS(refused(R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})", 1), "a: expected");
  EXPECT_HAS(refused(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}})", 1), "a: ");
  EXPECT_HAS(refused(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1), "two numbers");
  EXPECT_HAS(refused(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":0}})", 1),
             "unknown key \"x\"");
  EXPECT_HAS(refused(R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1],"data_offsets":[0,1]}})", 1),
             "dimensions");
  EXPECT_HAS(refused(R"({"__metadata__":{"a":{}}})", 0), "unexpected object");
}

TEST(SafetensorsHeader, OffsetsMustFitShapes) {
  EXPECT_HAS(refused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4),
             "a: data_offsets: expected 8 bytes for F32 [2]");
  EXPECT_HAS(refused(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1), "data_offsets");
  EXPECT_HAS(refused(R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0),
             "overflows");
  EXPECT_HAS(refused(R"({"a":{"dtype":"I64","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0),
             "overflows");
  EXPECT_HAS(
      refused(R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,1]}})", 1),
      "too large");
}

TEST(SafetensorsHeader, NoHoleNoOverlapNoTwins) {
  const auto two = [](const char* first, const char* second, const char* name) {
    return cat(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)", first, R"(},")", name,
               R"(":{"dtype":"U8","shape":[4],"data_offsets":)", second, "}}");
  };
  EXPECT_EQ(refused(two("[0,4]", "[4,8]", "b"), 8), "accepted");
  EXPECT_HAS(refused(two("[0,4]", "[2,6]", "b"), 6), "overlap");
  EXPECT_HAS(refused(two("[0,4]", "[0,4]", "b"), 4), "overlap");
  EXPECT_HAS(refused(two("[0,4]", "[5,9]", "b"), 9), "hole");
  EXPECT_HAS(refused(two("[1,5]", "[5,9]", "b"), 9), "hole");
  EXPECT_HAS(refused(two("[0,4]", "[4,8]", "a"), 8), "twice");
}

}  // namespace
}  // namespace dsv4
