// RoPE and Hadamard on single vectors.
#pragma once

#include <cmath>

#include "formats/bf16.h"
#include "ops/args/attention.h"

namespace dsv4::reference {

// Rotates x[0..r) (the RoPE dims of one head) by position p; the angle is rounded to FP32 first.
inline void rotate(bf16* x, const RopeView& rope, int64_t position, bool inverse) {
  for (int64_t i = 0; i < rope.r / 2; ++i) {
    const float angle = static_cast<float>(position) * rope.freqs[i];
    const float c = std::cos(angle), s = inverse ? -std::sin(angle) : std::sin(angle);
    const float re = to_float(x[2 * i]), im = to_float(x[2 * i + 1]);
    x[2 * i] = to_bf16(re * c - im * s);
    x[2 * i + 1] = to_bf16(re * s + im * c);
  }
}

// Hadamard transform in Sylvester order times e^-1/2, FP32 inside, BF16 out; e a power of two.
// `scratch` holds e floats.
inline void hadamard(bf16* x, int64_t e, float* scratch) {
  for (int64_t i = 0; i < e; ++i) scratch[i] = to_float(x[i]);
  for (int64_t h = 1; h < e; h *= 2) {
    for (int64_t i = 0; i < e; i += 2 * h) {
      for (int64_t j = i; j < i + h; ++j) {
        const float u = scratch[j], v = scratch[j + h];
        scratch[j] = u + v;
        scratch[j + h] = u - v;
      }
    }
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(e));
  for (int64_t i = 0; i < e; ++i) x[i] = to_bf16(scratch[i] * scale);
}

}  // namespace dsv4::reference
