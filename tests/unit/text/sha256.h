// SHA-256 (FIPS 180-4), for checking fixed texts in tests.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dsv4 {

inline std::string sha256(std::string_view text) {
  // The constants are the fractional bits of the roots of the first 64 primes.
  std::vector<uint32_t> primes;
  for (uint32_t n = 2; primes.size() < 64; ++n) {
    bool prime = true;
    for (const uint32_t p : primes) prime = prime && n % p != 0;
    if (prime) primes.push_back(n);
  }
  const auto fraction = [](long double x) {
    return static_cast<uint32_t>((x - std::floor(x)) * 4294967296.0L);
  };
  std::array<uint32_t, 8> state;
  for (size_t i = 0; i < 8; ++i)
    state[i] = fraction(std::sqrt(static_cast<long double>(primes[i])));

  std::vector<uint8_t> bytes(text.begin(), text.end());
  bytes.push_back(0x80);
  while (bytes.size() % 64 != 56) bytes.push_back(0);
  const uint64_t bits = uint64_t{text.size()} * 8;
  for (int shift = 56; shift >= 0; shift -= 8) bytes.push_back(static_cast<uint8_t>(bits >> shift));

  for (size_t block = 0; block < bytes.size(); block += 64) {
    std::array<uint32_t, 64> w{};
    for (size_t i = 0; i < 64; ++i) {
      if (i < 16) {
        for (size_t k = 0; k < 4; ++k) w[i] = w[i] << 8 | bytes[block + 4 * i + k];
      } else {
        const uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ (a >> 3)) + w[i - 7] +
               (std::rotr(b, 17) ^ std::rotr(b, 19) ^ (b >> 10));
      }
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (size_t i = 0; i < 64; ++i) {
      const uint32_t k = fraction(std::cbrt(static_cast<long double>(primes[i])));
      const uint32_t t1 = h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) +
                          ((e & f) ^ (~e & g)) + k + w[i];
      const uint32_t t2 =
          (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    const std::array<uint32_t, 8> out = {a, b, c, d, e, f, g, h};
    for (size_t i = 0; i < 8; ++i) state[i] += out[i];
  }
  std::string hex;
  for (const uint32_t word : state) {
    for (int shift = 28; shift >= 0; shift -= 4) hex += "0123456789abcdef"[word >> shift & 15];
  }
  return hex;
}

}  // namespace dsv4
