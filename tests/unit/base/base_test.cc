// The vocabulary types: what every folder above relies on.
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>

#include "base/buffer.h"
#include "base/dtype.h"
#include "base/str.h"
#include "base/tensor.h"
#include "dsv4/status.h"

namespace dsv4 {
namespace {

TEST(Status, OkByDefault) {
  const Status status;
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.code(), Code::kOk);
  EXPECT_EQ(status.message(), "");
}

TEST(Status, ContextComesFirstAndKeepsTheCode) {
  const Status status =
      Status(Code::kCorrupt, "header is 7 bytes, expected 8").with_context("a.safetensors");
  EXPECT_EQ(status.code(), Code::kCorrupt);
  EXPECT_EQ(status.message(), "a.safetensors: header is 7 bytes, expected 8");
  EXPECT_TRUE(Status().with_context("nothing happened").ok());
}

TEST(Status, EveryCodeHasItsOwnName) {
  std::set<std::string_view> names;
  for (int i = 0; i <= static_cast<int>(Code::kInternal); ++i)
    names.insert(code_name(static_cast<Code>(i)));
  EXPECT_EQ(names.size(), static_cast<size_t>(Code::kInternal) + 1);
  EXPECT_EQ(names.count("unknown"), 0u);
}

// Counts live objects, to see that Result destroys exactly what it made.
struct Counted {
  static inline int alive = 0;
  explicit Counted(int v) : value(v) { ++alive; }
  Counted(Counted&& o) noexcept : value(o.value) { ++alive; }
  Counted& operator=(Counted&&) = default;
  ~Counted() { --alive; }
  int value;
};

TEST(Result, HoldsAValueOrAnError) {
  Result<int> good(7);
  ASSERT_TRUE(good.ok());
  EXPECT_EQ(*good, 7);
  EXPECT_TRUE(good.status().ok());
  Result<int> bad(Status(Code::kNotFound, "no"));
  EXPECT_FALSE(bad.ok());
  EXPECT_EQ(bad.status().code(), Code::kNotFound);
}

TEST(Result, DestroysItsValueOnce) {
  {
    Result<Counted> a(Counted(1));
    Result<Counted> b(Counted(2));
    Result<Counted> error(Status(Code::kIo, "disk"));
    EXPECT_EQ(Counted::alive, 2);
    a = std::move(b);
    EXPECT_EQ(a->value, 2);
    a = std::move(error);
    EXPECT_FALSE(a.ok());
    error = Result<Counted>(Counted(3));
    EXPECT_EQ(error->value, 3);
    Result<Counted> moved(std::move(error));
    EXPECT_EQ(moved->value, 3);
  }
  EXPECT_EQ(Counted::alive, 0);
}

TEST(Result, MoveOnlyTypesPassThrough) {
  auto make = []() -> Result<std::unique_ptr<std::string>> {
    return std::make_unique<std::string>("x");
  };
  std::unique_ptr<std::string> p = *make();
  EXPECT_EQ(*p, "x");
}

Result<int> parse_digit(char c) {
  if (c < '0' || c > '9') return Status(Code::kInvalidArgument, cat("'", c, "' is no digit"));
  return c - '0';
}

Result<int> sum(std::string_view text) {
  int total = 0;
  for (char c : text) {
    DSV4_ASSIGN(const int digit, parse_digit(c));
    total += digit;
  }
  return total;
}

Status check(std::string_view text) {
  DSV4_TRY(sum(text).status());
  return Status();
}

TEST(Result, MacrosReturnTheFirstError) {
  EXPECT_EQ(*sum("123"), 6);
  EXPECT_EQ(sum("1x3").status().message(), "'x' is no digit");
  EXPECT_TRUE(check("9").ok());
  EXPECT_EQ(check("?").code(), Code::kInvalidArgument);
}

TEST(DType, NamesAreThoseOfSafetensorsHeadersBothWays) {
  const std::pair<DType, std::string_view> names[] = {
      {DType::kF32, "F32"},      {DType::kBF16, "BF16"},    {DType::kF16, "F16"},
      {DType::kE4M3, "F8_E4M3"}, {DType::kE8M0, "F8_E8M0"}, {DType::kI64, "I64"},
      {DType::kI32, "I32"},      {DType::kI8, "I8"},        {DType::kU8, "U8"},
      {DType::kBool, "BOOL"},
  };
  for (const auto& [type, name] : names) {
    EXPECT_EQ(dtype_name(type), name);
    EXPECT_EQ(dtype_from_name(name), type);
    EXPECT_GT(dtype_size(type), 0u) << name;
  }
  EXPECT_EQ(dtype_from_name("F8_E5M2"), std::nullopt);
  EXPECT_EQ(dtype_from_name("f32"), std::nullopt);
  EXPECT_EQ(dtype_from_name(""), std::nullopt);
}

TEST(DType, Sizes) {
  EXPECT_EQ(dtype_size(DType::kI64), 8u);
  EXPECT_EQ(dtype_size(DType::kF32), 4u);
  EXPECT_EQ(dtype_size(DType::kBF16), 2u);
  EXPECT_EQ(dtype_size(DType::kE4M3), 1u);
}

TEST(Shape, ElementsAndText) {
  EXPECT_EQ(Shape().elements(), 1);  // a scalar
  EXPECT_EQ(to_string(Shape()), "[]");
  const Shape shape = {4096, 1024};
  EXPECT_EQ(shape.rank, 2);
  EXPECT_EQ(shape[1], 1024);
  EXPECT_EQ(shape.elements(), 4096 * 1024);
  EXPECT_EQ(to_string(shape), "[4096, 1024]");
  EXPECT_EQ(Shape({0, 5}).elements(), 0);
  EXPECT_TRUE(shape == Shape({4096, 1024}));
  EXPECT_FALSE(shape == Shape({1024, 4096}));
  EXPECT_FALSE(shape == Shape({4096, 1024, 1}));
}

TEST(TensorRef, BytesFollowShapeAndType) {
  TensorRef t;
  t.dtype = DType::kBF16;
  t.shape = {3, 5};
  EXPECT_EQ(t.bytes(), 30u);
}

TEST(Str, JoinsTextAndNumbers) {
  EXPECT_EQ(cat("layer ", 3, ": ", std::string("x"), ' ', true, std::string_view("!")),
            "layer 3: x true!");
  EXPECT_EQ(cat(int64_t{-9007199254740993}), "-9007199254740993");
  EXPECT_EQ(cat(), "");
}

int freed = 0;
size_t freed_bytes = 0;

Buffer make_buffer(size_t bytes) {
  return Buffer(new char[bytes], bytes, MemoryKind::kHost, [](void* data, size_t n) {
    delete[] static_cast<char*>(data);
    ++freed;
    freed_bytes += n;
  });
}

TEST(Buffer, FreesOnceWithItsSizeWhereverItMoved) {
  freed = 0;
  freed_bytes = 0;
  {
    Buffer a = make_buffer(16);
    a.as<char>()[15] = 1;
    Buffer b = std::move(a);
    EXPECT_EQ(a.data(), nullptr);  // NOLINT(bugprone-use-after-move): moved from means empty
    EXPECT_EQ(a.bytes(), 0u);
    EXPECT_EQ(b.bytes(), 16u);
    b = make_buffer(8);
    EXPECT_EQ(freed, 1);
    EXPECT_EQ(freed_bytes, 16u);
    Buffer empty;
    EXPECT_EQ(empty.data(), nullptr);
  }
  EXPECT_EQ(freed, 2);
  EXPECT_EQ(freed_bytes, 24u);
}

}  // namespace
}  // namespace dsv4
