// The activation quantisers, bit for bit against the naive model: random groups over the whole
// exponent range, and the groups where rules meet.
#include "formats/quantise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "unit/formats/naive.h"

namespace dsv4 {
namespace {

using Group = std::vector<uint16_t>;

constexpr uint16_t kNan = 0x7fc0, kInf = 0x7f80, kOne = 0x3f80;

std::vector<bf16> values(const Group& group) {
  std::vector<bf16> x;
  for (uint16_t bits : group) x.push_back(bf16{bits});
  return x;
}

bool is_nan(uint16_t bits) {
  return (bits & 0x7fff) > 0x7f80;
}

// Equal bits, any NaN equal to any NaN.
void expect_same(const std::vector<bf16>& found, const Group& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    if (is_nan(expected[i])) {
      ASSERT_TRUE(is_nan(found[i].bits)) << "element " << i << ": " << to_float(found[i]);
    } else {
      ASSERT_EQ(found[i].bits, expected[i]) << "element " << i << ": " << to_float(found[i])
                                            << " against " << naive::bf16(expected[i]);
    }
  }
}

void check(const Group& group) {
  const int n = static_cast<int>(group.size());
  std::vector<bf16> x = values(group);

  std::vector<uint8_t> codes(group.size());
  const uint8_t scale = act8_quantise(x.data(), n, codes.data());
  const naive::Act8 act8 = naive::act8(group);
  ASSERT_EQ(scale, act8.scale);
  for (size_t i = 0; i < codes.size(); ++i) {
    ASSERT_EQ(codes[i], act8.codes[i]) << "element " << i << " of " << to_float(x[i]);
  }

  kv8_round(x.data(), n);
  expect_same(x, naive::kv8(group));

  x = values(group);
  idx4_round(x.data(), n);
  expect_same(x, naive::idx4(group));
}

// Random BF16 with exponents in a window around `exponent`, as real activations have.
Group random_group(std::mt19937& rng, size_t n, int exponent, int spread) {
  std::uniform_int_distribution<int> e(exponent - spread, exponent), bits(0, 255);
  Group group(n);
  for (uint16_t& x : group) {
    const int biased = std::clamp(e(rng) + 127, 0, 254);
    const int b = bits(rng);
    x = static_cast<uint16_t>((b & 1) << 15 | biased << 7 | (b >> 1));
  }
  return group;
}

TEST(Quantise, FloorsAndReciprocalsAreThoseOfTheSpecification) {
  EXPECT_EQ(kE4m3AmaxFloor, 1e-4f);
  EXPECT_EQ(kE2m1AmaxFloor, 6 * std::ldexp(1.0f, -126));
  EXPECT_EQ(1.0f / kE4m3Max, static_cast<float>(1.0 / 448));
  EXPECT_EQ(1.0f / kE2m1Max, static_cast<float>(1.0 / 6));
}

TEST(Quantise, TheInverseOfAScaleIsExact) {
  for (int b = 1; b <= 253; ++b) {
    EXPECT_EQ(ue8m0_to_float(static_cast<uint8_t>(b)) * ue8m0_inverse(static_cast<uint8_t>(b)),
              1.0f)
        << b;
  }
}

TEST(Quantise, RandomGroupsOfEveryMagnitude) {
  std::mt19937 rng(7);
  for (int exponent = -127; exponent <= 127; ++exponent) {
    for (int spread : {0, 3, 12, 40}) {
      for (size_t n : {size_t{128}, size_t{64}, size_t{32}})
        check(random_group(rng, n, exponent, spread));
    }
  }
}

TEST(Quantise, EveryBf16AsTheLargestOfItsGroup) {
  for (uint32_t bits = 0; bits < 0x7f80; ++bits) {
    const uint16_t x = static_cast<uint16_t>(bits);
    // Itself, its negative, what is just below it, and smaller ones that land between codes.
    Group group = {x, static_cast<uint16_t>(x | 0x8000)};
    for (uint32_t d : {1u, 0x80u, 0x93u, 0x100u, 0x1a5u, 0x300u}) {
      group.push_back(static_cast<uint16_t>(bits > d ? bits - d : 0));
    }
    check(group);
  }
}

TEST(Quantise, GroupsWhereRulesMeet) {
  check(Group(128, 0x0000));  // zeros
  check(Group(128, 0x8000));  // negative zeros keep their sign
  check(Group(64, 0x0001));   // smallest subnormal
  check(Group(64, 0x007f));   // largest subnormal
  check(Group(128, kOne));    // all equal
  check({naive::to_bf16(448), naive::to_bf16(-448)});
  check({naive::to_bf16(450), kOne});  // one step above 448: the scale doubles
  check({naive::to_bf16(6), naive::to_bf16(0.25), naive::to_bf16(5), naive::to_bf16(-2.5)});
  check({naive::to_bf16(1e-4), naive::to_bf16(0.99e-4), naive::to_bf16(1e-5)});  // around the floor
  check({0x7f7f, 0xff7f, kOne});                                                 // largest finite
  check({kOne});                                                                 // a group of one
}

TEST(Quantise, GroupBelowTheFloorUsesTheScaleOfTheFloor) {
  Group group(128, naive::to_bf16(1e-6));
  std::vector<uint8_t> codes(group.size());
  const uint8_t scale = act8_quantise(values(group).data(), 128, codes.data());
  EXPECT_EQ(scale, act8_scale_byte(1e-4f));
  EXPECT_EQ(scale, act8_scale_byte(0.0f));
  EXPECT_EQ(idx4_scale_byte(0.0f), 1);
}

TEST(Quantise, ANanStaysWhereItIs) {
  for (uint16_t nan : {kNan, static_cast<uint16_t>(kNan | 0x8000)}) {
    Group group = {kOne, naive::to_bf16(-3), nan, naive::to_bf16(0.3), 0};
    check(group);
    check(Group(32, nan));
  }
}

TEST(Quantise, AnInfinityTakesItsGroupWithIt) {
  const Group group = {kOne, kInf, 0, naive::to_bf16(-3)};
  std::vector<bf16> x = values(group);
  std::vector<uint8_t> codes(group.size());
  EXPECT_EQ(act8_quantise(x.data(), 4, codes.data()), kUe8m0Nan);  // value = code * NaN
  kv8_round(x.data(), 4);
  for (bf16 v : x) EXPECT_TRUE(is_nan(v.bits));
  x = values(group);
  idx4_round(x.data(), 4);
  for (bf16 v : x) EXPECT_TRUE(is_nan(v.bits));
}

TEST(Quantise, RoundingTwiceChangesNothing) {
  std::mt19937 rng(11);
  for (int round = 0; round < 2000; ++round) {
    std::vector<bf16> x = values(random_group(rng, 64, 3, 10));
    kv8_round(x.data(), 64);
    const std::vector<bf16> once = x;
    kv8_round(x.data(), 64);
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(x[i].bits, once[i].bits);
  }
}

// Mean rounding error of positive data, in units of the step at each value. Truncation would give
// -0.5, ties away from zero +0.03 on BF16 inputs; 0.003 is ten standard deviations.
template <class Round>
double mean_error(Round round, double largest_step_fraction) {
  std::mt19937 rng(3);
  std::uniform_real_distribution<double> uniform(0.5, 1.0);
  double error = 0, n = 0;
  for (int g = 0; g < 30000; ++g) {
    Group group(32);
    for (uint16_t& x : group) x = naive::to_bf16(uniform(rng));
    group[0] = naive::to_bf16(1.5);  // fixes the scale
    std::vector<bf16> x = values(group);
    round(x.data(), 32);
    for (size_t i = 1; i < group.size(); ++i) {
      const double before = naive::bf16(group[i]);
      error += (static_cast<double>(to_float(x[i])) - before) / largest_step_fraction;
      ++n;
    }
  }
  return error / n;
}

TEST(Quantise, RoundingHasNoBias) {
  // In [0.5, 1) E4M3 has steps of 1/16; E2M1 under the scale 1/4 (1.5 / 6) has steps of 1/4.
  EXPECT_LT(std::fabs(mean_error(kv8_round, 1.0 / 16)), 0.003);
  EXPECT_LT(std::fabs(mean_error(idx4_round, 1.0 / 4)), 0.003);
  EXPECT_GT(std::fabs(mean_error(
                [](bf16* x, int n) {
                  for (int i = 0; i < n; ++i) x[i].bits &= 0xfff0;  // truncation: the test can fail
                },
                1.0 / 16)),
            0.3);
}

}  // namespace
}  // namespace dsv4
