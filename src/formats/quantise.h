// The three activation quantisers of the model. Their rounding is part of each op's definition, the
// same on every backend; only where they run may differ.
//
//   act8  groups of 128 along K -> E4M3 codes + one UE8M0 byte   (inputs of FP8 and FP4 linears)
//   kv8   groups of 64, fake: quantise, dequantise, back to BF16 (cached keys/values, not RoPE dims)
//   idx4  groups of 32, fake, E2M1                               (indexer queries and keys)
//
// A NaN does not take part in amax and stays a NaN in its place.
#pragma once

#include "formats/e2m1.h"
#include "formats/e4m3.h"
#include "formats/ue8m0.h"

namespace dsv4 {

inline constexpr int kAct8Group = 128;
inline constexpr int kKv8Group = 64;
inline constexpr int kIdx4Group = 32;
inline constexpr float kE4m3AmaxFloor = 1e-4f;
inline constexpr float kE2m1AmaxFloor = 6.0f * 0x1p-126f;

DSV4_HD inline float abs_bits(float f) { return bits_to_float(float_to_bits(f) & 0x7fffffffu); }

// 2^-(b-127) as a float; finite groups have b in 1..253. With an infinity in the group b is 255, and
// that scale makes every value of the group NaN whatever is returned here.
DSV4_HD inline float ue8m0_inverse(uint8_t b) {
  return bits_to_float(static_cast<uint32_t>(254 - b) << 23);
}

DSV4_HD inline uint8_t act8_scale_byte(float amax) {
  return pow2_scale_byte(amax > kE4m3AmaxFloor ? amax : kE4m3AmaxFloor, 1.0f / kE4m3Max);
}

DSV4_HD inline uint8_t idx4_scale_byte(float amax) {
  return pow2_scale_byte(amax > kE2m1AmaxFloor ? amax : kE2m1AmaxFloor, 1.0f / kE2m1Max);
}

// One group of n <= 128 BF16 values at x -> codes[n]; returns the scale byte. Value = code * 2^(b-127).
DSV4_HD inline uint8_t act8_quantise(const bf16* x, int n, uint8_t* codes) {
  float amax = 0.0f;
  for (int i = 0; i < n; ++i) {
    const float a = abs_bits(to_float(x[i]));
    amax = a > amax ? a : amax;
  }
  const uint8_t b = act8_scale_byte(amax);
  const float inv = ue8m0_inverse(b);
  for (int i = 0; i < n; ++i) codes[i] = float_to_e4m3(to_float(x[i]) * inv);
  return b;
}

// Fake quantisation in place of one group.
DSV4_HD inline void kv8_round(bf16* x, int n) {
  float amax = 0.0f;
  for (int i = 0; i < n; ++i) {
    const float a = abs_bits(to_float(x[i]));
    amax = a > amax ? a : amax;
  }
  const uint8_t b = act8_scale_byte(amax);
  const float inv = ue8m0_inverse(b), scale = ue8m0_to_float(b);
  for (int i = 0; i < n; ++i) x[i] = to_bf16(e4m3_to_float(float_to_e4m3(to_float(x[i]) * inv)) * scale);
}

DSV4_HD inline void idx4_round(bf16* x, int n) {
  float amax = 0.0f;
  for (int i = 0; i < n; ++i) {
    const float a = abs_bits(to_float(x[i]));
    amax = a > amax ? a : amax;
  }
  const uint8_t b = idx4_scale_byte(amax);
  const float inv = ue8m0_inverse(b), scale = ue8m0_to_float(b);
  for (int i = 0; i < n; ++i) {
    const float v = to_float(x[i]);
    // E2M1 has no NaN code; dropping one here would hide a broken layer behind a finite key.
    if (v == v) x[i] = to_bf16(e2m1_to_float(float_to_e2m1(v * inv)) * scale);
  }
}

}  // namespace dsv4
