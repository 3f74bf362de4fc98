#include "text/byte_alphabet.h"

#include <array>

#include "text/utf8.h"

namespace dsv4 {
namespace {

constexpr char32_t kEnd = 0x144;  // one past the last character of the alphabet

constexpr bool stands_for_itself(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
}

struct Tables {
  std::array<char32_t, 256> character{};
  std::array<int, kEnd> byte{};  // -1 outside of the alphabet
};

constexpr Tables make_tables() {
  Tables t;
  t.byte.fill(-1);
  char32_t next = 0x100;
  for (unsigned b = 0; b < 256; ++b) {
    t.character[b] = stands_for_itself(b) ? b : next++;
    t.byte[t.character[b]] = static_cast<int>(b);
  }
  return t;
}

constexpr Tables kTables = make_tables();

}  // namespace

std::string byte_to_alphabet(unsigned char byte) {
  std::string out;
  append_utf8(out, kTables.character[byte]);
  return out;
}

std::string alphabet_to_bytes(std::string_view token) {
  std::string out;
  for (size_t at = 0; at < token.size();) {
    const Utf8Step step = utf8_step(token.substr(at));
    const char32_t c =
        step.kind == Utf8Kind::kValid ? utf8_code_point(token.substr(at, step.size)) : kEnd;
    if (c >= kEnd || kTables.byte[c] < 0) return std::string(token);
    out.push_back(static_cast<char>(kTables.byte[c]));
    at += step.size;
  }
  return out;
}

}  // namespace dsv4
