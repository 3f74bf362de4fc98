// One isolating split of a pre-tokenizer: every match of a regular expression becomes a piece, and
// so does every gap between matches. The expressions come from tokenizer.json, are written for
// Oniguruma, and are run by PCRE2.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dsv4/status.h"

namespace dsv4 {

class Splitter {
 public:
  // `literal`: the pattern is plain text.
  static Result<Splitter> compile(std::string_view pattern, bool literal);

  Splitter(Splitter&&) noexcept;
  Splitter& operator=(Splitter&&) noexcept;
  ~Splitter();

  // Splits each of `pieces` (well-formed UTF-8) on its own: a match sees nothing outside of its
  // piece. `out` receives the new pieces in order, none empty. Thread-safe.
  Status split(const std::vector<std::string_view>& pieces,
               std::vector<std::string_view>& out) const;

 private:
  struct Program;
  explicit Splitter(std::unique_ptr<Program> program);
  std::unique_ptr<Program> program_;
};

// The same expression for PCRE2. Only what differs and occurs in tokenizers is translated: \s and
// \S mean White_Space there, while PCRE2 adds U+180E. Constructs that would silently mean something
// else (nested classes, &&) are an error.
Result<std::string> pcre_from_oniguruma(std::string_view pattern);

}  // namespace dsv4
