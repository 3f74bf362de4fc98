// E2M1 (FP4): codes 0..7 are 0 .5 1 1.5 2 3 4 6, codes 8..15 their negatives (8 = -0). Two codes per
// byte along K: the low nibble is the even index.
#pragma once

#include "formats/bf16.h"

namespace dsv4 {

inline constexpr float kE2m1Max = 6.0f;

DSV4_HD inline float e2m1_to_float(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 8u) << 28;
  const uint32_t mag = code & 7u;
  // exponent (2 bits, bias 1) and one mantissa bit, placed 22 bits up, times 2^126.
  const float scaled = bits_to_float(mag << 22) * 0x1p126f;
  return bits_to_float(sign | float_to_bits(scaled));
}

DSV4_HD inline uint8_t e2m1_low(uint8_t byte) { return byte & 15u; }
DSV4_HD inline uint8_t e2m1_high(uint8_t byte) { return static_cast<uint8_t>(byte >> 4); }

// Nearest code; ties go to the even code, so .25 -> 0, .75 -> 1, 1.25 -> 1, 1.75 -> 2, 2.5 -> 2,
// 3.5 -> 4, 5 -> 4 in values. Beyond 6 clamps.
DSV4_HD inline uint8_t float_to_e2m1(float f) {
  const uint8_t sign = static_cast<uint8_t>((float_to_bits(f) >> 28) & 8u);
  const float a = bits_to_float(float_to_bits(f) & 0x7fffffffu);
  uint8_t code;
  if (a <= 0.25f) code = 0;
  else if (a < 0.75f) code = 1;
  else if (a <= 1.25f) code = 2;
  else if (a < 1.75f) code = 3;
  else if (a <= 2.5f) code = 4;
  else if (a < 3.5f) code = 5;
  else if (a <= 5.0f) code = 6;
  else code = 7;
  return static_cast<uint8_t>(sign | code);
}

}  // namespace dsv4
