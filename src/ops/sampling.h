// How a token is drawn, to the bit. A token's weight is an integer, e^((l - largest) / temperature) in
// units of 2^-43: sums of weights are exact and do not depend on their order, so host and device draw
// the same token from the same logits whatever way they go about it.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>

#include "formats/bf16.h"
#include "formats/host_device.h"
#include "ops/args/sample.h"
#include "ops/philox.h"

namespace dsv4 {

// e^x for x <= 0, to 2e-7 of it and 0 below e^-87: the same bits on every machine, and vector code
// in a loop. Logits are FP32 sums and no better.
DSV4_HD inline float exp_negative(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  const float y = x > -87.0f ? x : -87.0f;
  const float n = (y * kLog2E + kRound) - kRound;
  const float r = (y - n * kLn2High) - n * kLn2Low;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const float power = bits_to_float(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
  return x > -87.0f ? p * power : 0.0f;
}

inline constexpr float kSampleUnit = 0x1p43f;  // weight of the largest logit

// Relative to the largest logit's; what min-p compares.
DSV4_HD inline float relative_weight(float logit, float largest, float inverse_temperature) {
  return exp_negative((logit - largest) * inverse_temperature);
}
DSV4_HD inline uint64_t sample_weight(float relative) {
  return static_cast<uint64_t>(static_cast<int64_t>(relative * kSampleUnit));
}
DSV4_HD inline uint64_t sample_weight(float logit, float largest, float inverse_temperature) {
  return sample_weight(relative_weight(logit, largest, inverse_temperature));
}

// Logit and id as one number: the larger logit is larger, of equal ones the lower id.
DSV4_HD inline uint64_t sample_key(float logit, int32_t id) {
  const uint32_t bits = float_to_bits(logit + 0.0f);  // -0 equals 0
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (uint64_t{ordered} << 32) | (0xffffffffu - static_cast<uint32_t>(id));
}
DSV4_HD inline float key_logit(uint64_t key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  return bits_to_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}
DSV4_HD inline int32_t key_id(uint64_t key) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
}

// The sum that top-p has to reach.
DSV4_HD inline uint64_t top_p_target(uint64_t total, float top_p) {
  return static_cast<uint64_t>(ceil(static_cast<double>(total) * static_cast<double>(top_p)));
}
// In [0, total): the token drawn is the first one, by id, with which the sum of weights exceeds it.
DSV4_HD inline uint64_t sample_target(uint64_t seed, int64_t position, uint64_t total) {
  const uint64_t bits = random_bits_at(seed, static_cast<uint64_t>(position));
  // The upper half of bits * total.
  const uint64_t a = bits >> 32, b = bits & 0xffffffffu, c = total >> 32, d = total & 0xffffffffu;
  const uint64_t middle = a * d + (b * d >> 32), other = b * c + (middle & 0xffffffffu);
  return a * c + (middle >> 32) + (other >> 32);
}

// On the host.
struct LogitScan {
  float largest;
  bool sound;  // no NaN, no +inf
};
LogitScan scan_logits(std::span<const float> logits);

// The token of a row whose largest logit is finite; the kind must not be kNone. `scratch`: as many
// values as logits.
int32_t sample_token(std::span<const float> logits, float largest, const SampleRow& row,
                     std::span<uint64_t> scratch);

}  // namespace dsv4
