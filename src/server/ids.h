// Names for requests and answers.
#pragma once

#include <random>
#include <string>
#include <string_view>

namespace dsv4::server {

// `prefix` and 24 random characters.
inline std::string random_id(std::string_view prefix) {
  static constexpr std::string_view kAlphabet =
      "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  std::random_device generator;
  std::uniform_int_distribution<size_t> any(0, kAlphabet.size() - 1);
  std::string out(prefix);
  for (int i = 0; i < 24; ++i) out += kAlphabet[any(generator)];
  return out;
}

}  // namespace dsv4::server
