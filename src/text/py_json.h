// JSON with the semantics of Python's json.loads and json.dumps(ensure_ascii=False), which the
// prompt format is defined by: members keep their order (a repeated key keeps its first place and
// its last value), integers are exact at any size, floats print as their shortest repr, overflow
// becomes Infinity, and NaN / Infinity / -Infinity are literals.
//
// The reader is ours because no packaged one reads this language: nlohmann refuses NaN and 1e400,
// RapidJSON refuses 1e400 even when asked for raw number text and accepts "Inf".
#pragma once

#include <cstddef>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "dsv4/status.h"

namespace dsv4::py {

// Nesting beyond this is refused; Python's own recursion limit is of the same order.
inline constexpr size_t kMaxDepth = 900;

// Python refuses to read longer integers (sys.int_info.default_max_str_digits).
inline constexpr size_t kMaxIntDigits = 4300;

// An integer as its decimal digits, with a '-' where negative, without leading zeros.
struct Int {
  std::string digits;
};

struct Member;

class Value {
 public:
  using Array = std::vector<Value>;
  using Object = std::vector<Member>;

  Value();  // null
  Value(bool x);
  Value(Int x);
  Value(int x);
  Value(double x);
  Value(std::string x);
  Value(std::string_view x);
  Value(const char* x);
  Value(Array x);
  Value(Object x);
  Value(const Value&);
  Value(Value&&) noexcept;
  Value& operator=(const Value&);
  Value& operator=(Value&&) noexcept;
  ~Value();

  static Value array(std::initializer_list<Value> items);
  static Value object(std::initializer_list<Member> members);

  bool is_null() const { return std::holds_alternative<std::monostate>(data_); }
  const bool* if_bool() const { return std::get_if<bool>(&data_); }
  const Int* if_int() const { return std::get_if<Int>(&data_); }
  const double* if_float() const { return std::get_if<double>(&data_); }
  const std::string* if_string() const { return std::get_if<std::string>(&data_); }
  const Array* if_array() const { return std::get_if<Array>(&data_); }
  const Object* if_object() const { return std::get_if<Object>(&data_); }
  Array* if_array() { return std::get_if<Array>(&data_); }
  Object* if_object() { return std::get_if<Object>(&data_); }

  // Member of an object; nullptr when absent or when this is not an object.
  const Value* find(std::string_view key) const;
  // dict[key] = value; this must be an object.
  void set(std::string_view key, Value value);
  // del dict[key] where present; this must be an object.
  void erase(std::string_view key);

  // bool(x) of Python: null, false, 0, "" and empty containers are false.
  bool truthy() const;

  // "null", "a boolean", "an integer", "a float", "a string", "an array", "an object".
  std::string_view type_name() const;

 private:
  std::variant<std::monostate, bool, Int, double, std::string, Array, Object> data_;
};

struct Member {
  std::string key;
  Value value;
};

// Here, because a vector of Member can be handled only where Member is complete.
inline Value::Value() = default;
inline Value::Value(bool x) : data_(x) {}
inline Value::Value(Int x) : data_(std::move(x)) {}
inline Value::Value(int x) : data_(Int{std::to_string(x)}) {}
inline Value::Value(double x) : data_(x) {}
inline Value::Value(std::string x) : data_(std::move(x)) {}
inline Value::Value(std::string_view x) : data_(std::string(x)) {}
inline Value::Value(const char* x) : data_(std::string(x)) {}
inline Value::Value(Array x) : data_(std::move(x)) {}
inline Value::Value(Object x) : data_(std::move(x)) {}
inline Value::Value(const Value&) = default;
inline Value::Value(Value&&) noexcept = default;
inline Value& Value::operator=(const Value&) = default;
inline Value& Value::operator=(Value&&) noexcept = default;
inline Value::~Value() = default;

// kCorrupt: not JSON (message with line and column). kUnsupported: JSON that Python reads and this
// cannot hold: deeper than kMaxDepth, or a lone surrogate, which no UTF-8 text can express.
Result<Value> loads(std::string_view text);

std::string dumps(const Value& value);
void dump_to(std::string& out, const Value& value);
void dump_string_to(std::string& out, std::string_view text);

// str(x) of Python for null, booleans, numbers and strings; an error for containers.
Result<std::string> str(const Value& value);

// repr(x) of a float: shortest digits that read back, exponent form below 1e-4 and from 1e16.
std::string float_repr(double x);

// float(text) for a number that follows JSON's grammar; beyond the range: +-inf or +-0.
double parse_float(std::string_view text);

}  // namespace dsv4::py
