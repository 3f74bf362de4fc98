// UTF-8, one well-formed sequence at a time. What is ill-formed becomes U+FFFD, one for each
// maximal subpart (Unicode 15, section 3.9), which is also what the original tokenizer's host
// libraries do.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace dsv4 {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

enum class Utf8Kind {
  kValid,
  kInvalid,     // `size` bytes that no continuation can repair
  kIncomplete,  // `size` bytes that reach the end of the text and could still become valid
};

struct Utf8Step {
  size_t size;  // bytes of text covered, >= 1
  Utf8Kind kind;
};

// Looks at the start of `text`, which must not be empty.
Utf8Step utf8_step(std::string_view text);

bool is_utf8(std::string_view text);
std::string utf8_lossy(std::string_view text);
void append_utf8(std::string& out, char32_t code_point);

// The code point of a sequence that utf8_step called valid.
char32_t utf8_code_point(std::string_view sequence);

}  // namespace dsv4
