#include "text/py_json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "base/str.h"

namespace dsv4::py {

Value Value::array(std::initializer_list<Value> items) {
  return Value(Array(items));
}

Value Value::object(std::initializer_list<Member> members) {
  return Value(Object(members));
}

const Value* Value::find(std::string_view key) const {
  const Object* object = if_object();
  if (!object) return nullptr;
  for (const Member& m : *object) {
    if (m.key == key) return &m.value;
  }
  return nullptr;
}

void Value::set(std::string_view key, Value value) {
  Object& object = *if_object();
  for (Member& m : object) {
    if (m.key == key) {
      m.value = std::move(value);
      return;
    }
  }
  object.push_back(Member{std::string(key), std::move(value)});
}

void Value::erase(std::string_view key) {
  std::erase_if(*if_object(), [&](const Member& m) { return m.key == key; });
}

bool Value::truthy() const {
  struct Visitor {
    bool operator()(std::monostate) const { return false; }
    bool operator()(bool x) const { return x; }
    bool operator()(const Int& x) const { return x.digits != "0"; }
    bool operator()(double x) const { return x != 0.0; }
    bool operator()(const std::string& x) const { return !x.empty(); }
    bool operator()(const Array& x) const { return !x.empty(); }
    bool operator()(const Object& x) const { return !x.empty(); }
  };
  return std::visit(Visitor{}, data_);
}

std::string_view Value::type_name() const {
  static constexpr std::string_view kNames[] = {"null",     "a boolean", "an integer", "a float",
                                                "a string", "an array",  "an object"};
  return kNames[data_.index()];
}

double parse_float(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc{}) return value;
  // Out of range, and from_chars does not say on which side: the decimal exponent of the first
  // digit that is not zero does.
  const bool negative = text.front() == '-';
  const size_t e = text.find_first_of("eE");
  const std::string_view mantissa =
      text.substr(negative, e == text.npos ? text.npos : e - negative);
  const size_t point = std::min(mantissa.find('.'), mantissa.size());
  const size_t first = mantissa.find_first_of("123456789");
  if (first == mantissa.npos) return negative ? -0.0 : 0.0;
  long long exponent = 0;
  if (e != text.npos) {
    std::string_view digits = text.substr(e + 1);
    if (digits.front() == '+') digits.remove_prefix(1);
    if (std::from_chars(digits.data(), digits.data() + digits.size(), exponent).ec != std::errc{}) {
      exponent =
          digits.front() == '-' ? std::numeric_limits<int>::min() : std::numeric_limits<int>::max();
    }
  }
  exponent = std::clamp<long long>(exponent, -1'000'000'000, 1'000'000'000);
  exponent += static_cast<long long>(point) - static_cast<long long>(first);
  const double magnitude = exponent > 0 ? std::numeric_limits<double>::infinity() : 0.0;
  return negative ? -magnitude : magnitude;
}

std::string float_repr(double x) {
  if (std::isnan(x)) return "NaN";
  if (std::isinf(x)) return x < 0 ? "-Infinity" : "Infinity";
  char buffer[64];
  const auto [end, error] =
      std::to_chars(buffer, buffer + sizeof(buffer), x, std::chars_format::scientific);
  std::string_view text(buffer, static_cast<size_t>(end - buffer));

  std::string out;
  if (text.front() == '-') {
    out.push_back('-');
    text.remove_prefix(1);
  }
  const size_t e = text.find('e');
  std::string digits(1, text[0]);
  if (e > 2) digits.append(text.substr(2, e - 2));
  int exponent = 0;
  const size_t sign = text[e + 1] == '+' ? 1 : 0;
  std::from_chars(text.data() + e + 1 + sign, text.data() + text.size(), exponent);

  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out.push_back(digits[0]);
    if (count > 1) out.append(1, '.').append(digits, 1);
    const int magnitude = std::abs(exponent);
    out.append(exponent < 0 ? "e-" : "e+").append(magnitude < 10 ? "0" : "");
    out.append(std::to_string(magnitude));
  } else if (exponent < 0) {
    out.append("0.").append(static_cast<size_t>(-exponent - 1), '0').append(digits);
  } else if (count <= exponent + 1) {
    out.append(digits).append(static_cast<size_t>(exponent + 1 - count), '0').append(".0");
  } else {
    const auto whole = static_cast<size_t>(exponent + 1);
    out.append(digits, 0, whole).append(1, '.').append(digits, whole);
  }
  return out;
}

void dump_string_to(std::string& out, std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  out.push_back('"');
  for (const char c : text) {
    switch (c) {
      case '"':
        out.append("\\\"");
        break;
      case '\\':
        out.append("\\\\");
        break;
      case '\n':
        out.append("\\n");
        break;
      case '\r':
        out.append("\\r");
        break;
      case '\t':
        out.append("\\t");
        break;
      case '\b':
        out.append("\\b");
        break;
      case '\f':
        out.append("\\f");
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out.append("\\u00");
          out.push_back(kHex[c >> 4]);
          out.push_back(kHex[c & 15]);
        } else {
          out.push_back(c);
        }
    }
  }
  out.push_back('"');
}

void dump_to(std::string& out, const Value& value) {
  if (value.is_null()) {
    out.append("null");
  } else if (const bool* b = value.if_bool()) {
    out.append(*b ? "true" : "false");
  } else if (const Int* i = value.if_int()) {
    out.append(i->digits);
  } else if (const double* d = value.if_float()) {
    out.append(float_repr(*d));
  } else if (const std::string* s = value.if_string()) {
    dump_string_to(out, *s);
  } else if (const Value::Array* a = value.if_array()) {
    out.push_back('[');
    for (const Value& item : *a) {
      if (&item != a->data()) out.append(", ");
      dump_to(out, item);
    }
    out.push_back(']');
  } else if (const Value::Object* o = value.if_object()) {
    out.push_back('{');
    for (const Member& m : *o) {
      if (&m != o->data()) out.append(", ");
      dump_string_to(out, m.key);
      out.append(": ");
      dump_to(out, m.value);
    }
    out.push_back('}');
  }
}

std::string dumps(const Value& value) {
  std::string out;
  dump_to(out, value);
  return out;
}

Result<std::string> str(const Value& value) {
  if (value.is_null()) return std::string("None");
  if (const bool* b = value.if_bool()) return std::string(*b ? "True" : "False");
  if (const Int* i = value.if_int()) return i->digits;
  if (const std::string* s = value.if_string()) return *s;
  if (const double* d = value.if_float()) {
    if (std::isnan(*d)) return std::string("nan");
    if (std::isinf(*d)) return std::string(*d < 0 ? "-inf" : "inf");
    return float_repr(*d);
  }
  return Status(Code::kInvalidArgument, cat("expected a string, found ", value.type_name()));
}

}  // namespace dsv4::py
