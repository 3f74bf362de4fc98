// Reproducible random data: the same seed gives the same bytes on every machine and compiler.
#pragma once

#include <cstdint>

namespace dsv4::bench {

// SplitMix64.
class Rng {
 public:
  explicit Rng(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // 0 .. n-1
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  // Bell-shaped with mean 0 and variance 1 (four uniforms), |x| < 3.5: no libm in the way.
  float normal() {
    const uint64_t u = next();
    int32_t sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<int32_t>((u >> (16 * i)) & 0xffffu);
    return (static_cast<float>(sum) - 131070.0f) * (1.0f / 37837.0f);
  }

 private:
  uint64_t state_;
};

}  // namespace dsv4::bench
