#include "text/regex.h"

#include <algorithm>
#include <string>

#include "base/str.h"
#include "text/utf8.h"

namespace dsv4 {
namespace {

using Expr = GrammarBuilder::Expr;
using Range = GrammarBuilder::Range;
using Set = std::vector<Range>;

constexpr int64_t kMaxCount = 10'000;
constexpr int kMaxGroupDepth = 200;

const Set kDigits = {{'0', '9'}};
const Set kWord = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const Set kSpace = {{'\t', '\r'}, {' ', ' '}};

class RegexParser {
 public:
  RegexParser(GrammarBuilder& builder, std::string_view pattern, const RegexOptions& options)
      : builder_(builder), text_(pattern), options_(options) {}

  Result<Expr> parse() {
    if (!is_utf8(text_)) return wrong("expected UTF-8");
    DSV4_ASSIGN(const Expr all, alternatives(0));
    if (at_ < text_.size()) return wrong("found ) without (");
    return all;
  }

 private:
  Status wrong(std::string_view what) const {
    return Status(Code::kInvalidArgument, cat("regex: at byte ", at_, ": ", what));
  }
  bool more() const { return at_ < text_.size(); }
  char peek() const { return text_[at_]; }
  bool take(std::string_view expected) {
    if (!text_.substr(at_).starts_with(expected)) return false;
    at_ += expected.size();
    return true;
  }

  Result<Expr> alternatives(int depth) {
    if (depth > kMaxGroupDepth) return wrong("groups are nested too deep");
    std::vector<Expr> all;
    do {
      DSV4_ASSIGN(const Expr one, sequence(depth));
      all.push_back(one);
    } while (take("|"));
    return all.size() == 1 ? all[0] : builder_.choice(all);
  }

  Result<Expr> sequence(int depth) {
    std::vector<Expr> parts;
    const bool tied = take("^");
    if (options_.search && depth == 0 && !tied) parts.push_back(anything());
    bool tied_end = false;
    while (more() && peek() != '|' && peek() != ')') {
      if (peek() == '$' && (at_ + 1 == text_.size() || text_[at_ + 1] == '|' || text_[at_ + 1] == ')')) {
        ++at_;
        tied_end = true;
        continue;
      }
      DSV4_ASSIGN(const Expr part, counted(depth));
      parts.push_back(part);
    }
    if (options_.search && depth == 0 && !tied_end) parts.push_back(anything());
    return builder_.sequence(parts);
  }

  Expr anything() { return builder_.star(write(complement({}))); }

  Expr write(const Set& set) {
    return options_.write ? options_.write(builder_, set) : builder_.one_of(set);
  }

  Result<Expr> counted(int depth) {
    DSV4_ASSIGN(const Expr one, atom(depth));
    if (!more()) return one;
    int64_t min = 1, max = 1;
    if (take("*")) {
      min = 0;
      max = -1;
    } else if (take("+")) {
      max = -1;
    } else if (take("?")) {
      min = 0;
    } else if (peek() == '{' && at_ + 1 < text_.size() && text_[at_ + 1] >= '0' &&
               text_[at_ + 1] <= '9') {
      ++at_;
      DSV4_ASSIGN(min, number());
      max = min;
      if (take(",")) {
        max = -1;
        if (more() && peek() != '}') {
          DSV4_ASSIGN(max, number());
        }
      }
      if (!take("}")) return wrong("expected } behind a count");
      if (max >= 0 && max < min) return wrong("a count whose end is before its start");
    } else {
      return one;
    }
    (void)(take("?") || take("+"));  // how a matcher searches does not change what matches
    if (more() && (peek() == '*' || peek() == '+' || peek() == '?')) {
      return wrong("a count behind a count");
    }
    return builder_.repeat(builder_.make_rule(one), min, max);
  }

  Result<int64_t> number() {
    int64_t n = 0;
    const size_t from = at_;
    for (; more() && peek() >= '0' && peek() <= '9'; ++at_) {
      n = std::min(kMaxCount + 1, n * 10 + (peek() - '0'));
    }
    if (at_ == from) return wrong("expected a number");
    if (n > kMaxCount) return wrong(cat("a count above ", kMaxCount));
    return n;
  }

  Result<Expr> atom(int depth) {
    if (take("(")) {
      if (take("?")) {
        // (?:...) and (?<name>...) group; the rest looks around or changes the rules.
        if (take("P<") || (take("<") && more() && peek() != '=' && peek() != '!')) {
          const size_t end = text_.find('>', at_);
          if (end == text_.npos) return wrong("expected > behind the name of a group");
          at_ = end + 1;
        } else if (!take(":")) {
          return wrong("groups of this kind (look-around, flags) are not supported");
        }
      }
      DSV4_ASSIGN(const Expr inside, alternatives(depth + 1));
      if (!take(")")) return wrong("expected ) to close a group");
      return inside;
    }
    if (take("[")) {
      DSV4_ASSIGN(const Set set, char_class());
      return write(set);
    }
    if (take(".")) return write(complement({{'\n', '\n'}}));
    if (take("\\")) {
      DSV4_ASSIGN(const Set set, escape());
      return write(set);
    }
    if (peek() == '*' || peek() == '+' || peek() == '?') return wrong("a count without anything before it");
    if (peek() == '^' || peek() == '$') return wrong("^ and $ are supported at the ends only");
    const char32_t c = next_char();
    return write({{c, c}});
  }

  char32_t next_char() {
    const size_t size = utf8_step(text_.substr(at_)).size;
    const char32_t c = utf8_code_point(text_.substr(at_, size));
    at_ += size;
    return c;
  }

  Result<char32_t> hex(size_t digits) {
    char32_t c = 0;
    for (size_t i = 0; i < digits; ++i, ++at_) {
      const char d = more() ? peek() : ' ';
      const int value = d >= '0' && d <= '9'   ? d - '0'
                        : d >= 'a' && d <= 'f' ? d - 'a' + 10
                        : d >= 'A' && d <= 'F' ? d - 'A' + 10
                                               : -1;
      if (value < 0) return wrong(cat("expected ", digits, " hexadecimal digits"));
      c = c * 16 + static_cast<char32_t>(value);
    }
    if (c >= 0xD800 && c <= 0xDFFF) return wrong("a surrogate is no character");
    return c;
  }

  // Behind a backslash: the set that the escape stands for.
  Result<Set> escape() {
    if (!more()) return wrong("nothing behind the last \\");
    const char c = peek();
    if (static_cast<unsigned char>(c) >= 0x80) {
      const char32_t x = next_char();
      return Set{{x, x}};
    }
    ++at_;
    const auto one = [](char32_t x) { return Set{{x, x}}; };
    switch (c) {
      case 'd':
        return kDigits;
      case 'D':
        return complement(kDigits);
      case 'w':
        return kWord;
      case 'W':
        return complement(kWord);
      case 's':
        return kSpace;
      case 'S':
        return complement(kSpace);
      case 'n':
        return one('\n');
      case 't':
        return one('\t');
      case 'r':
        return one('\r');
      case 'f':
        return one('\f');
      case 'v':
        return one('\v');
      case '0':
        return one(0);
      case 'x':
      case 'u': {
        DSV4_ASSIGN(const char32_t x, hex(c == 'x' ? 2 : 4));
        return one(x);
      }
      default:
        if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
          --at_;
          return wrong(cat("\\", c, " is not supported"));
        }
        return one(static_cast<char32_t>(c));
    }
  }

  Result<Set> char_class() {
    Set set;
    const bool inverted = take("^");
    bool first = true;
    for (;; first = false) {
      if (!more()) return wrong("expected ] to close a class");
      if (peek() == ']' && !first) break;
      Set item;
      if (take("\\")) {
        if (more() && peek() == 'b') {  // inside a class it is a backspace
          ++at_;
          item = {{'\b', '\b'}};
        } else {
          DSV4_ASSIGN(item, escape());
        }
      } else {
        const char32_t c = next_char();
        item = {{c, c}};
      }
      const bool single = item.size() == 1 && item[0].first == item[0].second;
      if (single && at_ + 1 < text_.size() && peek() == '-' && text_[at_ + 1] != ']') {
        ++at_;
        char32_t high = 0;
        if (take("\\")) {
          DSV4_ASSIGN(const Set end, escape());
          if (end.size() != 1 || end[0].first != end[0].second) return wrong("a range without end");
          high = end[0].first;
        } else {
          high = next_char();
        }
        if (high < item[0].first) return wrong("a range whose end is before its start");
        item[0].second = high;
      }
      set.insert(set.end(), item.begin(), item.end());
    }
    ++at_;
    return inverted ? complement(std::move(set)) : set;
  }

  GrammarBuilder& builder_;
  const std::string_view text_;
  const RegexOptions& options_;
  size_t at_ = 0;
};

}  // namespace

Result<Expr> regex_expr(GrammarBuilder& builder, std::string_view pattern,
                        const RegexOptions& options) {
  return RegexParser(builder, pattern, options).parse();
}

Result<Grammar> regex_grammar(std::string_view pattern) {
  GrammarBuilder builder;
  DSV4_ASSIGN(const Expr expr, regex_expr(builder, pattern));
  return builder.build(builder.make_rule(expr));
}

Result<Grammar> choice_grammar(const std::vector<std::string>& choices) {
  if (choices.empty()) return Status(Code::kInvalidArgument, "choice: expected at least one text");
  GrammarBuilder builder;
  std::vector<Expr> all;
  for (const std::string& text : choices) all.push_back(builder.literal(text));
  return builder.build(builder.make_rule(builder.choice(all)));
}

}  // namespace dsv4
