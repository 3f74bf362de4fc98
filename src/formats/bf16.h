// BF16: the upper half of an FP32. Rounding is to nearest even; a NaN stays a NaN (quiet).
#pragma once

#include <cstdint>
#include <cstring>

#include "formats/host_device.h"

namespace dsv4 {

struct bf16 {
  uint16_t bits;
};

DSV4_HD inline float bits_to_float(uint32_t bits) {
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

DSV4_HD inline uint32_t float_to_bits(float f) {
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  return bits;
}

DSV4_HD inline float to_float(bf16 x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }

DSV4_HD inline bf16 to_bf16(float f) {
  const uint32_t u = float_to_bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{static_cast<uint16_t>((u >> 16) | 0x40u)};
  const uint32_t rounded = u + 0x7fffu + ((u >> 16) & 1u);
  return bf16{static_cast<uint16_t>(rounded >> 16)};
}

// FP32 value of the nearest BF16.
DSV4_HD inline float round_bf16(float f) { return to_float(to_bf16(f)); }

}  // namespace dsv4
