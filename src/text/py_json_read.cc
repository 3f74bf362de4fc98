// The reader: an explicit stack instead of recursion, so that no input overflows the machine's.
#include <algorithm>
#include <limits>
#include <numeric>

#include "base/str.h"
#include "text/py_json.h"
#include "text/utf8.h"

namespace dsv4::py {
namespace {

// A repeated key keeps its first place and takes its last value. Sorting, rather than hashing,
// keeps the cost bounded for any keys: a request body is chosen by somebody else.
void fold_repeated_keys(Value::Object& members) {
  if (members.size() < 2) return;
  if (members.size() <= 8) {
    for (size_t i = 1; i < members.size(); ++i) {
      for (size_t j = 0; j < i; ++j) {
        if (members[j].key != members[i].key) continue;
        members[j].value = std::move(members[i].value);
        members.erase(members.begin() + static_cast<std::ptrdiff_t>(i));
        --i;
        break;
      }
    }
    return;
  }
  std::vector<size_t> order(members.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const int compared = members[a].key.compare(members[b].key);
    return compared != 0 ? compared < 0 : a < b;
  });
  std::vector<bool> gone;
  for (size_t i = 0; i + 1 < order.size();) {
    size_t j = i + 1;
    while (j < order.size() && members[order[j]].key == members[order[i]].key) ++j;
    if (j > i + 1) {
      gone.resize(members.size());
      members[order[i]].value = std::move(members[order[j - 1]].value);
      for (size_t k = i + 1; k < j; ++k) gone[order[k]] = true;
    }
    i = j;
  }
  if (gone.empty()) return;
  size_t kept = 0;
  for (size_t i = 0; i < members.size(); ++i) {
    if (gone[i]) continue;
    if (kept != i) members[kept] = std::move(members[i]);
    ++kept;
  }
  members.resize(kept);
}

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  Result<Value> document() {
    DSV4_ASSIGN(Value value, nested_value());
    skip_space();
    if (at_ < text_.size()) return wrong("the end of the text");
    return value;
  }

 private:
  struct Frame {
    Value container;
    std::string key;  // of the member whose value comes next, in an object
  };

  Result<Value> nested_value() {
    std::vector<Frame> stack;
    for (;;) {
      Value value;
      skip_space();
      const char c = peek();
      if (c == '[' || c == '{') {
        if (stack.size() == kMaxDepth) {
          return Status(Code::kUnsupported, cat("JSON at ", place(), ": nested deeper than ",
                                                kMaxDepth, " levels; flatten it"));
        }
        ++at_;
        skip_space();
        const bool object = c == '{';
        const bool empty = take(object ? '}' : ']');
        value = object ? Value(Value::Object()) : Value(Value::Array());
        if (!empty) {
          stack.push_back(Frame{std::move(value), {}});
          if (object) DSV4_TRY(key(stack.back().key));
          continue;
        }
      } else {
        DSV4_TRY(scalar(value));
      }
      // A value is complete: hand it to the container it stands in, and that one to its own.
      for (;;) {
        if (stack.empty()) return value;
        Frame& top = stack.back();
        skip_space();
        if (Value::Array* array = top.container.if_array()) {
          array->push_back(std::move(value));
          if (take(',')) break;
          if (!take(']')) return wrong("',' or ']'");
        } else {
          Value::Object& object = *top.container.if_object();
          object.push_back(Member{std::move(top.key), std::move(value)});
          if (take(',')) {
            skip_space();
            DSV4_TRY(key(top.key));
            break;
          }
          if (!take('}')) return wrong("',' or '}'");
          fold_repeated_keys(object);
        }
        value = std::move(top.container);
        stack.pop_back();
      }
    }
  }

  Status key(std::string& out) {
    if (peek() != '"') return wrong("a member name in double quotes");
    DSV4_TRY(string(out));
    skip_space();
    if (!take(':')) return wrong("':'");
    return {};
  }

  Status scalar(Value& out) {
    const char c = peek();
    if (c == '"') {
      std::string s;
      DSV4_TRY(string(s));
      out = Value(std::move(s));
      return {};
    }
    if (c == '-' || is_digit(c)) {
      if (!take_word("-Infinity")) return number(out);
      out = Value(-std::numeric_limits<double>::infinity());
    } else if (take_word("true")) {
      out = Value(true);
    } else if (take_word("false")) {
      out = Value(false);
    } else if (take_word("NaN")) {
      out = Value(std::numeric_limits<double>::quiet_NaN());
    } else if (take_word("Infinity")) {
      out = Value(std::numeric_limits<double>::infinity());
    } else if (!take_word("null")) {
      return wrong("a value");
    }
    return {};
  }

  Status number(Value& out) {
    const size_t begin = at_;
    take('-');
    const size_t first = at_;
    if (!is_digit(peek())) return wrong("a digit");
    if (!take('0')) skip_digits();
    const size_t digits = at_ - first;
    bool is_float = false;
    if (peek() == '.' && is_digit(peek(1))) {
      is_float = true;
      ++at_;
      skip_digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      const size_t sign = peek(1) == '+' || peek(1) == '-' ? 1 : 0;
      if (is_digit(peek(1 + sign))) {
        is_float = true;
        at_ += 1 + sign;
        skip_digits();
      }
    }
    const std::string_view text = text_.substr(begin, at_ - begin);
    if (is_float) {
      out = Value(parse_float(text));
      return {};
    }
    if (digits > kMaxIntDigits) {
      return Status(Code::kCorrupt, cat("JSON at ", place(), ": an integer of ", digits,
                                        " digits, at most ", kMaxIntDigits, " are read"));
    }
    out = Value(Int{text == "-0" ? "0" : std::string(text)});
    return {};
  }

  Status string(std::string& out) {
    out.clear();
    ++at_;
    for (;;) {
      const size_t begin = at_;
      while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' &&
             static_cast<unsigned char>(text_[at_]) >= 0x20) {
        ++at_;
      }
      out.append(text_, begin, at_ - begin);
      if (at_ == text_.size()) return wrong("a closing '\"'");
      if (text_[at_] == '"') {
        ++at_;
        return {};
      }
      if (text_[at_] != '\\') return wrong("a character that is not a control character");
      ++at_;
      DSV4_TRY(escape(out));
    }
  }

  Status escape(std::string& out) {
    static constexpr std::string_view kNames = "\"\\/bfnrt";
    static constexpr std::string_view kMeaning = "\"\\/\b\f\n\r\t";
    if (const size_t i = kNames.find(peek()); i != kNames.npos) {
      out.push_back(kMeaning[i]);
      ++at_;
      return {};
    }
    if (peek() != 'u') return wrong("one of \" \\ / b f n r t u after a backslash");
    char32_t c = 0;
    DSV4_TRY(hex4(c));
    if (c >= 0xD800 && c < 0xE000) {
      char32_t low = 0;
      if (c < 0xDC00 && peek() == '\\' && peek(1) == 'u') {
        ++at_;
        DSV4_TRY(hex4(low));
      }
      if (low < 0xDC00 || low >= 0xE000) {
        return Status(Code::kUnsupported, cat("JSON at ", place(),
                                              ": a lone surrogate, which UTF-8 cannot express; "
                                              "escape characters beyond U+FFFF as a pair"));
      }
      c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
    }
    append_utf8(out, c);
    return {};
  }

  // The four digits after a 'u'.
  Status hex4(char32_t& out) {
    ++at_;
    for (int i = 0; i < 4; ++i) {
      const char c = peek();
      char32_t digit = 0;
      if (is_digit(c)) {
        digit = static_cast<char32_t>(c - '0');
      } else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')) {
        digit = static_cast<char32_t>((c | 0x20) - 'a' + 10);
      } else {
        return wrong("four hexadecimal digits after \\u");
      }
      out = out << 4 | digit;
      ++at_;
    }
    return {};
  }

  static bool is_digit(char c) { return c >= '0' && c <= '9'; }

  // '\0' past the end, which no rule of the grammar accepts.
  char peek(size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
  }

  bool take(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  bool take_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  void skip_digits() {
    while (is_digit(peek())) ++at_;
  }

  void skip_space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) {
      ++at_;
    }
  }

  std::string place() const {
    const std::string_view before = text_.substr(0, at_);
    const auto line = std::count(before.begin(), before.end(), '\n') + 1;
    const size_t last = before.rfind('\n');
    return cat("line ", line, " column ", last == before.npos ? at_ + 1 : at_ - last);
  }

  Status wrong(std::string_view expected) const {
    std::string found = "the end of the text";
    if (at_ < text_.size()) {
      const auto c = static_cast<unsigned char>(text_[at_]);
      if (c < 0x20 || c == 0x7F) {
        found = cat("byte ", static_cast<int>(c));
      } else {
        found = cat("'", text_.substr(at_, utf8_step(text_.substr(at_)).size), "'");
      }
    }
    return Status(Code::kCorrupt,
                  cat("JSON at ", place(), ": expected ", expected, ", found ", found));
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

Result<Value> loads(std::string_view text) {
  if (!is_utf8(text)) {
    size_t at = 0;
    while (utf8_step(text.substr(at)).kind == Utf8Kind::kValid)
      at += utf8_step(text.substr(at)).size;
    return Status(Code::kCorrupt, cat("JSON at byte ", at, ": expected UTF-8, found byte ",
                                      static_cast<int>(static_cast<unsigned char>(text[at]))));
  }
  return Reader(text).document();
}

}  // namespace dsv4::py
