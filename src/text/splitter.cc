#include "text/splitter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/str.h"
#include "text/utf8.h"

namespace dsv4 {
namespace {

template <auto release>
struct Release {
  template <class T>
  void operator()(T* p) const {
    release(p);
  }
};

using CodePtr = std::unique_ptr<pcre2_code, Release<pcre2_code_free>>;
using MatchDataPtr = std::unique_ptr<pcre2_match_data, Release<pcre2_match_data_free>>;
using MatchContextPtr = std::unique_ptr<pcre2_match_context, Release<pcre2_match_context_free>>;
using JitStackPtr = std::unique_ptr<pcre2_jit_stack, Release<pcre2_jit_stack_free>>;

constexpr size_t kJitStackStart = size_t{32} << 10;
constexpr size_t kJitStackMost = size_t{16} << 20;

// Backtracking is bounded by the text: a run of n blanks is legal and costs n steps, an expression
// that needs many times that is an accident or an attack.
constexpr uint32_t kMatchLimit = 10'000'000;

std::string pcre_message(int error) {
  PCRE2_UCHAR buffer[256] = {};
  pcre2_get_error_message(error, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

// White_Space of Unicode, as members of a character class.
constexpr std::string_view kWhiteSpace =
    "\\t-\\r "
    "\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";

}  // namespace

Result<std::string> pcre_from_oniguruma(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    const char next = i + 1 < pattern.size() ? pattern[i + 1] : '\0';
    if (c == '\\' && i + 1 < pattern.size()) {
      ++i;
      if (next == 's') {
        out.append(in_class ? "" : "[").append(kWhiteSpace).append(in_class ? "" : "]");
      } else if (next == 'S' && !in_class) {
        out.append("[^").append(kWhiteSpace).append("]");
      } else {
        out.append(1, c).append(1, next);
      }
      continue;
    }
    if (!in_class && c == '[') {
      in_class = true;
      out.push_back(c);
      // A ']' that comes first is a member, not the end.
      if (next == '^') out.push_back(pattern[++i]);
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') out.push_back(pattern[++i]);
      continue;
    }
    if (in_class && c == '[' && next != ':') {
      return Status(Code::kUnsupported, "a character class inside a character class");
    }
    if (in_class && c == '[') {
      const size_t end = pattern.find(":]", i);
      if (end == pattern.npos) return Status(Code::kCorrupt, "a [: without its :]");
      out.append(pattern, i, end + 2 - i);
      i = end + 1;
      continue;
    }
    if (in_class && c == '&' && next == '&') {
      return Status(Code::kUnsupported, "an intersection of character classes (&&)");
    }
    if (in_class && c == ']') in_class = false;
    out.push_back(c);
  }
  return out;
}

struct Splitter::Program {
  CodePtr code;
};

Splitter::Splitter(std::unique_ptr<Program> program) : program_(std::move(program)) {}
Splitter::Splitter(Splitter&&) noexcept = default;
Splitter& Splitter::operator=(Splitter&&) noexcept = default;
Splitter::~Splitter() = default;

Result<Splitter> Splitter::compile(std::string_view pattern, bool literal) {
  std::string translated(pattern);
  uint32_t options = PCRE2_UTF;
  if (literal) {
    options |= PCRE2_LITERAL;
  } else {
    DSV4_ASSIGN(translated, pcre_from_oniguruma(pattern));
    options |= PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
  }
  int error = 0;
  PCRE2_SIZE offset = 0;
  CodePtr code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                             options, &error, &offset, nullptr));
  if (!code) {
    return Status(Code::kCorrupt, cat(pcre_message(error), " (near character ", offset, ")"));
  }
  // Where code may not be generated (a hardened kernel) the interpreter gives the same matches.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  auto program = std::make_unique<Program>();
  program->code = std::move(code);
  return Splitter(std::move(program));
}

Status Splitter::split(const std::vector<std::string_view>& pieces,
                       std::vector<std::string_view>& out) const {
  const pcre2_code* code = program_->code.get();
  MatchDataPtr match(pcre2_match_data_create_from_pattern(code, nullptr));
  MatchContextPtr context(pcre2_match_context_create(nullptr));
  JitStackPtr stack(pcre2_jit_stack_create(kJitStackStart, kJitStackMost, nullptr));
  if (!match || !context) return Status(Code::kResourceExhausted, "no memory for a text split");
  if (stack) pcre2_jit_stack_assign(context.get(), nullptr, stack.get());

  for (const std::string_view piece : pieces) {
    const auto add = [&](size_t begin, size_t end) {
      if (end > begin) out.push_back(piece.substr(begin, end - begin));
    };
    const uint32_t spare = static_cast<uint32_t>(std::min<size_t>(piece.size(), 1u << 27));
    pcre2_set_match_limit(context.get(), kMatchLimit + 16 * spare);
    size_t done = 0;  // everything before is in `out`
    size_t from = 0;  // the search goes on here
    while (from <= piece.size() && done < piece.size()) {
      const auto run = [&](uint32_t options) {
        return pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(piece.data()), piece.size(), from,
                           PCRE2_NO_UTF_CHECK | options, match.get(), context.get());
      };
      int found = run(0);
      if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = run(PCRE2_NO_JIT);
      if (found == PCRE2_ERROR_NOMATCH) break;
      if (found < 0) {
        return Status(Code::kResourceExhausted,
                      cat("splitting the text stopped at byte ", from, ": ", pcre_message(found)));
      }
      const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match.get());
      if (span[0] < done || span[1] < span[0]) {
        return Status(Code::kUnsupported, "a pattern that moves its match with \\K or lookbehind");
      }
      add(done, span[0]);
      add(span[0], span[1]);
      done = span[1];
      from = span[1];
      // An empty match separates two pieces; the search goes on behind the next character.
      if (span[1] == span[0]) from += done < piece.size() ? utf8_step(piece.substr(done)).size : 1;
    }
    add(done, piece.size());
  }
  return {};
}

}  // namespace dsv4
