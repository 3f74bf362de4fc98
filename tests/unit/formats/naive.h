// The number formats a second time, written in double from their definitions and sharing nothing
// with src/formats: what the codecs are held against.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace dsv4::naive {

inline float float_of(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline uint32_t bits_of(float f) {
  uint32_t u;
  std::memcpy(&u, &f, sizeof u);
  return u;
}

// Magnitude of an E4M3 code without its sign bit; 0x7f is NaN.
inline double e4m3_magnitude(int code) {
  const int exponent = code >> 3, mantissa = code & 7;
  if (code == 0x7f) return std::numeric_limits<double>::quiet_NaN();
  if (exponent == 0) return std::ldexp(mantissa, -9);
  return std::ldexp(8 + mantissa, exponent - 10);
}

inline double e4m3(uint8_t code) {
  const double m = e4m3_magnitude(code & 0x7f);
  return code & 0x80 ? -m : m;
}

inline double e2m1(uint8_t code) {
  static constexpr double kMagnitude[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const double m = kMagnitude[code & 7];
  return code & 8 ? -m : m;
}

inline double ue8m0(uint8_t byte) {
  return byte == 255 ? std::numeric_limits<double>::quiet_NaN() : std::ldexp(1.0, byte - 127);
}

// Index of the value nearest to a >= 0 in an ascending table, a tie to the even index; beyond the
// last value the last index. Midpoints of neighbours are exact in double.
inline int nearest(const std::vector<double>& ascending, double a) {
  int i = 0;
  const int last = static_cast<int>(ascending.size()) - 1;
  while (i < last) {
    const double middle =
        (ascending[static_cast<size_t>(i)] + ascending[static_cast<size_t>(i) + 1]) / 2;
    if (a < middle || (a == middle && i % 2 == 0)) break;
    ++i;
  }
  return i;
}

inline const std::vector<double>& e4m3_values() {
  static const std::vector<double> values = [] {
    std::vector<double> v;
    for (int code = 0; code < 0x7f; ++code) v.push_back(e4m3_magnitude(code));
    return v;
  }();
  return values;
}

inline const std::vector<double>& e2m1_values() {
  static const std::vector<double> values = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return values;
}

inline uint8_t to_e4m3(double x) {
  const int sign = std::signbit(x) ? 0x80 : 0;
  if (std::isnan(x)) return static_cast<uint8_t>(sign | 0x7f);
  return static_cast<uint8_t>(sign | nearest(e4m3_values(), std::fabs(x)));
}

// x is not NaN: E2M1 has none.
inline uint8_t to_e2m1(double x) {
  return static_cast<uint8_t>((std::signbit(x) ? 8 : 0) | nearest(e2m1_values(), std::fabs(x)));
}

inline double bf16(uint16_t bits) {
  return float_of(static_cast<uint32_t>(bits) << 16);
}

// Nearest BF16 of a double that is not NaN, ties to even, overflow to infinity.
inline uint16_t to_bf16(double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double a = std::fabs(x);
  // 8 bits of precision, but never finer than the subnormal step 2^-133.
  int exponent = 0;
  std::frexp(a, &exponent);
  const double step = std::ldexp(1.0, std::max(exponent - 8, -133));
  const double rounded = std::nearbyint(a / step) * step;  // exact but for the rounding to even
  if (rounded > bf16(0x7f7f)) return static_cast<uint16_t>(sign | 0x7f80);
  return static_cast<uint16_t>(sign | (bits_of(static_cast<float>(rounded)) >> 16));
}

// Exponent of the "pow2 scale": smallest power of two >= amax / qmax, where the division is a
// multiplication by the FP32 reciprocal of qmax and is itself rounded to FP32.
inline int pow2_exponent(float amax, double qmax) {
  const double reciprocal = static_cast<float>(1.0 / qmax);
  const float ratio = static_cast<float>(static_cast<double>(amax) * reciprocal);
  int exponent = 0;
  const double fraction = std::frexp(static_cast<double>(ratio), &exponent);
  return fraction == 0.5 ? exponent - 1 : exponent;
}

// amax of a group: a NaN does not take part, and it is never below the floor.
inline float group_amax(const std::vector<uint16_t>& group, double floor) {
  double amax = 0;
  for (uint16_t bits : group) {
    const double a = std::fabs(bf16(bits));
    if (!std::isnan(a) && a > amax) amax = a;
  }
  return std::max(static_cast<float>(amax), static_cast<float>(floor));
}

struct Act8 {
  std::vector<uint8_t> codes;
  uint8_t scale = 0;
};

inline Act8 act8(const std::vector<uint16_t>& group) {
  const int exponent = pow2_exponent(group_amax(group, 1e-4), 448);
  Act8 out;
  out.scale = static_cast<uint8_t>(exponent + 127);
  for (uint16_t bits : group) out.codes.push_back(to_e4m3(bf16(bits) / std::ldexp(1.0, exponent)));
  return out;
}

// Quantise and dequantise; NaN elements are the caller's to check.
inline std::vector<uint16_t> kv8(const std::vector<uint16_t>& group) {
  const double scale = std::ldexp(1.0, pow2_exponent(group_amax(group, 1e-4), 448));
  std::vector<uint16_t> out;
  for (uint16_t bits : group) {
    const double x = bf16(bits);
    out.push_back(std::isnan(x) ? bits : to_bf16(e4m3(to_e4m3(x / scale)) * scale));
  }
  return out;
}

inline std::vector<uint16_t> idx4(const std::vector<uint16_t>& group) {
  const double scale = std::ldexp(1.0, pow2_exponent(group_amax(group, std::ldexp(6.0, -126)), 6));
  std::vector<uint16_t> out;
  for (uint16_t bits : group) {
    const double x = bf16(bits);
    out.push_back(std::isnan(x) ? bits : to_bf16(e2m1(to_e2m1(x / scale)) * scale));
  }
  return out;
}

}  // namespace dsv4::naive
