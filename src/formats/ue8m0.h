// UE8M0: byte b means 2^(b-127); 255 is NaN. Powers of two as block scales.
#pragma once

#include "formats/bf16.h"

namespace dsv4 {

inline constexpr uint8_t kUe8m0Nan = 255;

DSV4_HD inline float ue8m0_to_float(uint8_t b) {
  if (b == kUe8m0Nan) return bits_to_float(0x7fc00000u);
  return b == 0 ? bits_to_float(0x00400000u) : bits_to_float(static_cast<uint32_t>(b) << 23);
}

// The "pow2 scale" of MODEL.md: 2^ceil(log2(amax/qmax)) read off the float's bits, where amax/qmax
// is amax times the FP32 reciprocal of qmax. Returned as the UE8M0 byte.
DSV4_HD inline uint8_t pow2_scale_byte(float amax, float inv_qmax) {
  const uint32_t u = float_to_bits(amax * inv_qmax);
  return static_cast<uint8_t>(((u >> 23) & 0xffu) + ((u & 0x7fffffu) != 0 ? 1u : 0u));
}

}  // namespace dsv4
