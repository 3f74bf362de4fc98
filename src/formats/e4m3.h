// E4M3 (OCP FP8): 1 sign, 4 exponent (bias 7), 3 mantissa bits; largest 448; no infinity; 0x7f and
// 0xff are NaN.
#pragma once

#include "formats/bf16.h"

namespace dsv4 {

inline constexpr float kE4m3Max = 448.0f;

DSV4_HD inline float e4m3_to_float(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t mag = code & 0x7fu;
  if (mag == 0x7fu) return bits_to_float(sign | 0x7fc00000u);
  // Placing exponent and mantissa 20 bits up gives value * 2^-120, subnormals included.
  const float scaled = bits_to_float(mag << 20) * 0x1p120f;
  return bits_to_float(sign | float_to_bits(scaled));
}

// Round to nearest even after clamping to +-448. NaN gives the NaN code.
DSV4_HD inline uint8_t float_to_e4m3(float f) {
  const uint32_t u = float_to_bits(f);
  const uint8_t sign = static_cast<uint8_t>((u >> 24) & 0x80u);
  const uint32_t mag = u & 0x7fffffffu;
  if (mag > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
  if (mag >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);  // >= 448
  if (mag < 0x3c800000u) {
    // Below 2^-6: steps of 2^-9. Adding 2^14 leaves the value in units of 2^-9, rounded to even.
    const uint32_t rounded = float_to_bits(bits_to_float(mag) + 16384.0f) - 0x46800000u;
    return static_cast<uint8_t>(sign | rounded);
  }
  const uint32_t rounded = mag + 0x7ffffu + ((mag >> 20) & 1u);
  const uint32_t code = (rounded >> 20) - (120u << 3);
  return static_cast<uint8_t>(sign | (code > 0x7eu ? 0x7eu : code));
}

}  // namespace dsv4
