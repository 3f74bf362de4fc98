// Dequantisation of whole matrices with shapes that do not fill their blocks, at unaligned
// addresses as in published files.
#include "formats/weight_format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "unit/formats/naive.h"

namespace dsv4 {
namespace {

struct Case {
  WeightFormat format;
  int64_t rows, cols;
};

// One value, straight from the sentence that defines the format.
double expected_value(const Case& c, const uint8_t* weight, const uint8_t* scale, double global,
                      int64_t row, int64_t col) {
  const int64_t at = row * c.cols + col;
  switch (c.format) {
    case WeightFormat::kF32: {
      float f;
      std::memcpy(&f, weight + 4 * at, 4);
      return static_cast<double>(f);
    }
    case WeightFormat::kI32: {
      int32_t i;
      std::memcpy(&i, weight + 4 * at, 4);
      return i;
    }
    case WeightFormat::kBf16:
      return naive::bf16(static_cast<uint16_t>(weight[2 * at] | weight[2 * at + 1] << 8));
    case WeightFormat::kFp8Tile128: {
      const int64_t tiles = (c.cols + 127) / 128;
      return naive::e4m3(weight[at]) * naive::ue8m0(scale[row / 128 * tiles + col / 128]);
    }
    case WeightFormat::kMxfp4:
    case WeightFormat::kNvfp4: {
      const uint8_t byte = weight[at / 2];
      const double v = naive::e2m1(at % 2 ? byte >> 4 : byte & 15);
      if (c.format == WeightFormat::kMxfp4) return v * naive::ue8m0(scale[at / 32]);
      return v * naive::e4m3(scale[at / 16]) * global;
    }
  }
  return 0;
}

class Dequantise : public testing::TestWithParam<Case> {};

TEST_P(Dequantise, EveryElementIsThatOfTheDefinition) {
  const Case c = GetParam();
  const size_t weight_size = static_cast<size_t>(weight_bytes(c.format, c.rows, c.cols));
  const size_t scale_size = static_cast<size_t>(scale_bytes(c.format, c.rows, c.cols));
  const bool quantised = scale_size > 0;
  // Heap blocks of the exact size, so that a sanitizer sees one byte too many; data from byte 1 on.
  std::vector<uint8_t> weight(1 + weight_size), scale(1 + scale_size);
  std::mt19937 rng(static_cast<unsigned>(c.rows * 1000 + c.cols));
  std::uniform_int_distribution<int> byte(0, 255), exponent(100, 140), positive(1, 0x7e);
  for (uint8_t& b : weight) {
    do {
      b = static_cast<uint8_t>(byte(rng));
    } while (quantised && (b & 0x7f) == 0x7f);  // NaN codes have their own test
  }
  for (uint8_t& b : scale) {
    b = static_cast<uint8_t>(format_info(c.format).scale_dtype == DType::kE8M0 ? exponent(rng)
                                                                               : positive(rng));
  }
  if (c.format == WeightFormat::kI32) {
    for (size_t i = 0; i < weight_size; i += 4)
      weight[1 + i + 2] = weight[1 + i + 3] = 0;  // exact in FP32
  }
  const float global = format_info(c.format).has_global_scale ? 0.0123f : 1.0f;

  std::vector<float> out(static_cast<size_t>(c.cols));
  for (int64_t row = 0; row < c.rows; ++row) {
    dequantise_row(c.format, weight.data() + 1, scale.data() + 1, global, c.rows, c.cols, row,
                   out.data());
    for (int64_t col = 0; col < c.cols; ++col) {
      const double e = expected_value(c, weight.data() + 1, scale.data() + 1,
                                      static_cast<double>(global), row, col);
      const float found = out[static_cast<size_t>(col)];
      if (std::isnan(e)) {
        ASSERT_TRUE(std::isnan(found)) << row << ", " << col;
      } else {
        ASSERT_EQ(found, static_cast<float>(e)) << row << ", " << col;
      }
      const float one = dequantise_at(c.format, weight.data() + 1, scale.data() + 1, global, c.rows,
                                      c.cols, row, col);
      ASSERT_EQ(naive::bits_of(one), naive::bits_of(found));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Dequantise,
    testing::Values(Case{WeightFormat::kF32, 3, 5}, Case{WeightFormat::kBf16, 7, 33},
                    Case{WeightFormat::kI32, 5, 6}, Case{WeightFormat::kFp8Tile128, 1, 1},
                    Case{WeightFormat::kFp8Tile128, 128, 128},
                    Case{WeightFormat::kFp8Tile128, 129, 127},
                    Case{WeightFormat::kFp8Tile128, 300, 257}, Case{WeightFormat::kMxfp4, 1, 32},
                    Case{WeightFormat::kMxfp4, 3, 96}, Case{WeightFormat::kMxfp4, 130, 160},
                    Case{WeightFormat::kNvfp4, 1, 32}, Case{WeightFormat::kNvfp4, 3, 96},
                    Case{WeightFormat::kNvfp4, 130, 160}));

TEST(WeightFormats, NanCodesAndScalesGiveNan) {
  const uint8_t nan_code = 0x7f, one_code = 0x38, one_scale = 127, nan_scale = 255;
  EXPECT_TRUE(
      std::isnan(dequantise_at(WeightFormat::kFp8Tile128, &nan_code, &one_scale, 1, 1, 1, 0, 0)));
  EXPECT_TRUE(
      std::isnan(dequantise_at(WeightFormat::kFp8Tile128, &one_code, &nan_scale, 1, 1, 1, 0, 0)));
  EXPECT_EQ(dequantise_at(WeightFormat::kFp8Tile128, &one_code, &one_scale, 1, 1, 1, 0, 0), 1.0f);
}

// A block of 32 under 2^e is two blocks of 16 under 2^(e-m) with the global scale 2^m.
TEST(WeightFormats, ALosslessCastFromMxfp4ToNvfp4KeepsEveryBit) {
  std::vector<uint8_t> weight(16);
  for (size_t i = 0; i < 16; ++i) weight[i] = static_cast<uint8_t>(i * 17);
  for (int e = -9; e <= 8; ++e) {  // the powers of two of E4M3, subnormal ones included
    const uint8_t mx = static_cast<uint8_t>(127 - 20 + e);
    const uint8_t one = naive::to_e4m3(std::ldexp(1.0, e));
    const uint8_t nv[2] = {one, one};
    for (int64_t col = 0; col < 32; ++col) {
      const float a = dequantise_at(WeightFormat::kMxfp4, weight.data(), &mx, 1.0f, 1, 32, 0, col);
      const float b =
          dequantise_at(WeightFormat::kNvfp4, weight.data(), nv, 0x1p-20f, 1, 32, 0, col);
      EXPECT_EQ(naive::bits_of(a), naive::bits_of(b)) << e << " " << col;
    }
  }
}

TEST(WeightFormats, SizesAreThoseOfPublishedTensors) {
  EXPECT_EQ(weight_bytes(WeightFormat::kFp8Tile128, 1024, 4096), 1024 * 4096);
  EXPECT_EQ(scale_bytes(WeightFormat::kFp8Tile128, 1024, 4096), 8 * 32);
  EXPECT_EQ(scale_bytes(WeightFormat::kFp8Tile128, 1536, 7168), 12 * 56);
  EXPECT_EQ(scale_bytes(WeightFormat::kFp8Tile128, 129, 257), 2 * 3);
  EXPECT_EQ(weight_bytes(WeightFormat::kMxfp4, 2048, 4096), 2048 * 2048);
  EXPECT_EQ(scale_bytes(WeightFormat::kMxfp4, 2048, 4096), 2048 * 128);
  EXPECT_EQ(weight_bytes(WeightFormat::kNvfp4, 4096, 2048), 4096 * 1024);
  EXPECT_EQ(scale_bytes(WeightFormat::kNvfp4, 4096, 2048), 4096 * 128);
  EXPECT_EQ(weight_bytes(WeightFormat::kBf16, 129280, 7168), int64_t{129280} * 7168 * 2);
  EXPECT_EQ(scale_bytes(WeightFormat::kBf16, 129280, 7168), 0);
}

TEST(WeightFormats, TheTableIsInTheOrderOfTheEnum) {
  for (int i = 0; i <= static_cast<int>(WeightFormat::kI32); ++i) {
    const FormatInfo& info = format_info(static_cast<WeightFormat>(i));
    EXPECT_EQ(static_cast<int>(info.format), i);
    EXPECT_FALSE(info.name.empty());
  }
}

}  // namespace
}  // namespace dsv4
