// The byte alphabet of GPT-2: every byte has a printable character, so that a vocabulary of any
// bytes can be written as JSON text. Printable Latin-1 stands for itself, the rest from U+0100 on.
#pragma once

#include <string>
#include <string_view>

namespace dsv4 {

// The character that stands for `byte` in a byte-level vocabulary, as UTF-8.
std::string byte_to_alphabet(unsigned char byte);

// The bytes that `token` stands for. A token with a character outside of the alphabet (an added
// token such as <｜User｜>) is plain text and stands for itself.
std::string alphabet_to_bytes(std::string_view token);

}  // namespace dsv4
