// Every codec against its definition in double: all codes one way; the other way all BF16 inputs,
// both FP32 neighbours of every midpoint, and a dense walk over all FP32 bit patterns.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "formats/e2m1.h"
#include "formats/e4m3.h"
#include "formats/ue8m0.h"
#include "unit/formats/naive.h"

namespace dsv4 {
namespace {

// A step that is odd and not close to a power of two meets every combination of exponents and low
// bits.
constexpr uint32_t kStride = 1021;

template <class Visit>
void walk_floats(Visit visit) {
  for (uint64_t u = 0; u <= 0xffffffffull; u += kStride) {
    visit(naive::float_of(static_cast<uint32_t>(u)));
  }
}

// Every value, every midpoint of neighbours, and the floats on both sides of each, with both signs.
template <class Visit>
void walk_neighbourhoods(const std::vector<double>& ascending, Visit visit) {
  std::vector<float> points;
  for (size_t i = 0; i < ascending.size(); ++i) {
    points.push_back(static_cast<float>(ascending[i]));
    if (i + 1 < ascending.size())
      points.push_back(static_cast<float>((ascending[i] + ascending[i + 1]) / 2));
  }
  const float last = static_cast<float>(ascending.back());
  points.insert(points.end(), {last * 33 / 32, last * 17 / 16, last * 2, 3e38f});
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (float p : points) {
    for (float q : {p, std::nextafter(p, kInf), std::nextafter(p, -kInf)}) {
      visit(q);
      visit(-q);
    }
  }
  visit(kInf);
  visit(-kInf);
}

TEST(E4m3, EveryCodeHasItsValue) {
  for (int code = 0; code < 256; ++code) {
    const float value = e4m3_to_float(static_cast<uint8_t>(code));
    const double expected = naive::e4m3(static_cast<uint8_t>(code));
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(value)) << code;
    } else {
      EXPECT_EQ(value, expected) << code;
    }
    EXPECT_EQ(std::signbit(value), code >= 128) << code;
  }
  EXPECT_EQ(e4m3_to_float(0x7e), 448.0f);
  EXPECT_EQ(e4m3_to_float(0x01), 0x1p-9f);
}

TEST(E4m3, EveryCodeSurvivesARoundTrip) {
  for (int code = 0; code < 256; ++code) {
    EXPECT_EQ(float_to_e4m3(e4m3_to_float(static_cast<uint8_t>(code))), code);
  }
}

TEST(E4m3, RoundsEveryBf16ToNearestEven) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float f = naive::float_of(bits << 16);
    ASSERT_EQ(float_to_e4m3(f), naive::to_e4m3(f)) << std::hexfloat << f;
  }
}

TEST(E4m3, RoundsAroundEveryMidpoint) {
  walk_neighbourhoods(naive::e4m3_values(), [](float f) {
    ASSERT_EQ(float_to_e4m3(f), naive::to_e4m3(f)) << std::hexfloat << f;
  });
}

TEST(E4m3, RoundsAcrossAllFloats) {
  walk_floats(
      [](float f) { ASSERT_EQ(float_to_e4m3(f), naive::to_e4m3(f)) << std::hexfloat << f; });
}

TEST(E4m3, ClampsInsteadOfOverflowing) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (float f : {448.0f, 464.0f, 480.0f, 1e30f, kInf}) {
    EXPECT_EQ(float_to_e4m3(f), 0x7e) << f;
    EXPECT_EQ(float_to_e4m3(-f), 0xfe) << f;
  }
  EXPECT_EQ(float_to_e4m3(std::nanf("")) & 0x7f, 0x7f);
}

TEST(E2m1, EveryCodeHasItsValue) {
  for (int code = 0; code < 16; ++code) {
    const float value = e2m1_to_float(static_cast<uint8_t>(code));
    EXPECT_EQ(value, naive::e2m1(static_cast<uint8_t>(code))) << code;
    EXPECT_EQ(std::signbit(value), code >= 8) << code;
    EXPECT_EQ(float_to_e2m1(value), code) << code;
  }
}

TEST(E2m1, RoundsEveryBf16ToNearestEven) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float f = naive::float_of(bits << 16);
    if (std::isnan(f)) continue;
    ASSERT_EQ(float_to_e2m1(f), naive::to_e2m1(f)) << std::hexfloat << f;
  }
}

TEST(E2m1, RoundsAroundEveryMidpoint) {
  walk_neighbourhoods(naive::e2m1_values(), [](float f) {
    ASSERT_EQ(float_to_e2m1(f), naive::to_e2m1(f)) << std::hexfloat << f;
  });
}

TEST(E2m1, RoundsAcrossAllFloats) {
  walk_floats([](float f) {
    if (!std::isnan(f)) {
      ASSERT_EQ(float_to_e2m1(f), naive::to_e2m1(f)) << std::hexfloat << f;
    }
  });
}

TEST(E2m1, TiesAreThoseOfTheSpecification) {
  const float ties[][2] = {{.25f, 0}, {.75f, 1}, {1.25f, 1}, {1.75f, 2},
                           {2.5f, 2}, {3.5f, 4}, {5, 4}};
  for (const auto& [x, rounded] : ties) {
    EXPECT_EQ(e2m1_to_float(float_to_e2m1(x)), rounded);
    EXPECT_EQ(e2m1_to_float(float_to_e2m1(-x)), -rounded);
  }
}

TEST(E2m1, LowNibbleComesFirst) {
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(e2m1_low(static_cast<uint8_t>(byte)), byte % 16);
    EXPECT_EQ(e2m1_high(static_cast<uint8_t>(byte)), byte / 16);
  }
}

TEST(Ue8m0, EveryByteIsItsPowerOfTwo) {
  for (int byte = 0; byte < 255; ++byte) {
    EXPECT_EQ(ue8m0_to_float(static_cast<uint8_t>(byte)), naive::ue8m0(static_cast<uint8_t>(byte)))
        << byte;
  }
  EXPECT_TRUE(std::isnan(ue8m0_to_float(255)));
}

TEST(Pow2Scale, IsTheSmallestPowerOfTwoNotBelowTheRatio) {
  for (float qmax : {448.0f, 6.0f}) {
    walk_floats([&](float amax) {
      if (!(amax > 0) || std::isinf(amax)) return;
      const float inverse = 1.0f / qmax;
      const float ratio = amax * inverse;
      if (ratio < std::numeric_limits<float>::min()) return;  // next test
      const int byte = pow2_scale_byte(amax, inverse);
      ASSERT_EQ(byte, naive::pow2_exponent(amax, static_cast<double>(qmax)) + 127)
          << std::hexfloat << amax;
      ASSERT_GE(naive::ue8m0(static_cast<uint8_t>(byte)), ratio);
      ASSERT_LT(naive::ue8m0(static_cast<uint8_t>(byte)), 2.0 * static_cast<double>(ratio));
    });
  }
}

TEST(Pow2Scale, PowersOfTwoStayAndTheirNeighboursGoUp) {
  for (int e = -126; e <= 126; ++e) {
    const float p = std::ldexp(1.0f, e);
    EXPECT_EQ(pow2_scale_byte(p, 1.0f), e + 127);
    EXPECT_EQ(pow2_scale_byte(std::nextafter(p, 1e38f), 1.0f), e + 128);
  }
  // A ratio below the smallest normal float has no exponent of its own: 2^-126, and zero 2^-127.
  EXPECT_EQ(pow2_scale_byte(0x1p-140f, 1.0f), 1);
  EXPECT_EQ(pow2_scale_byte(0.0f, 1.0f), 0);
}

TEST(Bf16, EveryValueSurvivesARoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const bf16 x{static_cast<uint16_t>(bits)};
    EXPECT_EQ(naive::bits_of(to_float(x)), bits << 16);
    if (!std::isnan(to_float(x))) {
      ASSERT_EQ(to_bf16(to_float(x)).bits, bits);
    }
  }
}

TEST(Bf16, RoundsToNearestEven) {
  // Each BF16 with the lower halves that decide: none, all, and around the middle.
  for (uint32_t high = 0; high < 65536; ++high) {
    for (uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const float f = naive::float_of(high << 16 | low);
      if (std::isnan(f)) continue;
      ASSERT_EQ(to_bf16(f).bits, naive::to_bf16(static_cast<double>(f))) << std::hexfloat << f;
      ASSERT_EQ(naive::bits_of(round_bf16(f)), static_cast<uint32_t>(to_bf16(f).bits) << 16);
    }
  }
  walk_floats([](float f) {
    if (!std::isnan(f)) {
      ASSERT_EQ(to_bf16(f).bits, naive::to_bf16(static_cast<double>(f))) << std::hexfloat << f;
    }
  });
}

TEST(Bf16, NanStaysNanAndKeepsItsSign) {
  for (uint32_t bits :
       {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu, 0x7f80ffffu}) {
    const bf16 x = to_bf16(naive::float_of(bits));
    EXPECT_TRUE(std::isnan(to_float(x))) << std::hex << bits;
    EXPECT_EQ(x.bits >> 15, bits >> 31) << std::hex << bits;
  }
}

TEST(Bf16, OverflowsToInfinityOnlyBeyondTheMiddle) {
  EXPECT_EQ(to_bf16(naive::float_of(0x7f7f7fff)).bits, 0x7f7f);
  EXPECT_EQ(to_bf16(naive::float_of(0x7f7f8000)).bits, 0x7f80);
  EXPECT_EQ(to_bf16(naive::float_of(0xff7fffff)).bits, 0xff80);
}

}  // namespace
}  // namespace dsv4
