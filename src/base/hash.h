// A 128-bit hash of bytes, for names and checksums: two lanes of multiply and rotate over 64-bit
// words. Not for secrets; it has no defence against inputs made to collide.
#pragma once

#include <bit>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace dsv4 {

struct Hash128 {
  uint64_t a = 0, b = 0;
  auto operator<=>(const Hash128&) const = default;
};

class Hasher {
 public:
  explicit Hasher(Hash128 seed = {}) : a_(seed.a ^ 0x9E3779B97F4A7C15u), b_(~seed.b) {}

  Hasher& add(const void* data, size_t bytes) {
    const char* at = static_cast<const char*>(data);
    const size_t total = bytes;
    for (; bytes >= 8; bytes -= 8, at += 8) {
      uint64_t word = 0;
      std::memcpy(&word, at, 8);
      mix(word);
    }
    uint64_t rest = 0;
    if (bytes > 0) std::memcpy(&rest, at, bytes);
    mix(rest);
    mix(total);  // where one piece ends is part of the hash
    return *this;
  }
  template <class T>
  Hasher& add(std::span<const T> values) {
    return add(values.data(), values.size_bytes());
  }
  Hash128 finish() const { return {avalanche(a_ ^ std::rotl(b_, 32)), avalanche(b_ + 3 * a_)}; }

 private:
  void mix(uint64_t word) {
    a_ = std::rotl((a_ ^ word) * 0xD6E8FEB86659FD93u, 29);
    b_ = std::rotl(b_ + word, 23) * 0xA0761D6478BD642Fu;
  }
  static uint64_t avalanche(uint64_t x) {
    x = (x ^ (x >> 32)) * 0xE7037ED1A0B428DBu;
    x = (x ^ (x >> 29)) * 0x8EBC6AF09C88C6E3u;
    return x ^ (x >> 32);
  }
  uint64_t a_, b_;
};

}  // namespace dsv4
