// RoPE of one position, for all heads that share it.
#pragma once

#include <cmath>

#include "formats/bf16.h"
#include "ops/args/attention.h"

namespace dsv4::cpu {

// table[0 .. r/2) = cos, table[r/2 .. r) = sin; the angle is rounded to FP32 first.
inline void fill_rotation(const RopeView& rope, int64_t position, bool inverse, float* table) {
  const int64_t half = rope.r / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float angle = static_cast<float>(position) * rope.freqs[i];
    table[i] = std::cos(angle);
    table[half + i] = inverse ? -std::sin(angle) : std::sin(angle);
  }
}

// x[0 .. r): the RoPE dims of one head.
inline void rotate(bf16* x, int64_t r, const float* table) {
  const int64_t half = r / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float re = to_float(x[2 * i]), im = to_float(x[2 * i + 1]);
    const float c = table[i], s = table[half + i];
    x[2 * i] = to_bf16(re * c - im * s);
    x[2 * i + 1] = to_bf16(re * s + im * c);
  }
}

}  // namespace dsv4::cpu
