// Packing loses nothing: the published bytes come back, for shapes that fill tiles and that do not.
#include <gtest/gtest.h>

#include "unit/cpu/make_weight.h"

namespace dsv4 {
namespace {

using tests::Published;

struct Case {
  WeightRole role;
  WeightFormat format;
  int64_t rows, cols, count, groups;
};

void expect_round_trip(const Case& c) {
  SCOPED_TRACE(testing::Message() << format_info(c.format).name << " [" << c.rows << ", " << c.cols << "] x "
                                  << c.count << ", " << c.groups << " groups");
  const Published published(c.role, c.format, c.rows, c.cols, c.count, c.groups, 7);
  for (int threads : {1, 3}) {
    const std::unique_ptr<Backend> backend = tests::cpu(threads);
    auto packed = backend->pack(published.request);
    ASSERT_TRUE(packed.ok()) << packed.status().message();
    EXPECT_EQ(packed->bytes(), backend->packed_bytes(published.request));
    EXPECT_EQ(packed->view().count, c.count);
    EXPECT_EQ(packed->view().rows, c.rows);
    EXPECT_EQ(packed->view().cols, c.cols);
    for (int64_t i = 0; i < c.count; ++i) {
      const size_t at = static_cast<size_t>(i);
      std::vector<uint8_t> weight(published.weights[at].size(), 0xaa), scale(published.scales[at].size(), 0xaa);
      ASSERT_TRUE(backend->unpack(*packed, i, weight.data(), scale.empty() ? nullptr : scale.data()).ok());
      EXPECT_EQ(weight, published.weights[at]);
      EXPECT_EQ(scale, published.scales[at]);
    }
    EXPECT_FALSE(backend->unpack(*packed, c.count, nullptr, nullptr).ok());
  }
}

TEST(Pack, EveryFormatAndRaggedShape) {
  for (WeightFormat format : {WeightFormat::kF32, WeightFormat::kBf16, WeightFormat::kFp8Tile128,
                              WeightFormat::kMxfp4, WeightFormat::kNvfp4}) {
    for (int64_t rows : {1, 16, 32, 33, 256}) {
      for (int64_t cols : {32, 128, 160, 384}) {
        expect_round_trip({WeightRole::kLinear, format, rows, cols, 1, 1});
      }
    }
  }
}

TEST(Pack, StacksAndGroups) {
  expect_round_trip({WeightRole::kExperts, WeightFormat::kMxfp4, 48, 128, 5, 1});
  expect_round_trip({WeightRole::kExperts, WeightFormat::kNvfp4, 24, 160, 3, 1});
  expect_round_trip({WeightRole::kGrouped, WeightFormat::kFp8Tile128, 256, 256, 1, 4});
  // Groups that begin inside a tile and inside a 128-row scale tile.
  expect_round_trip({WeightRole::kGrouped, WeightFormat::kFp8Tile128, 300, 128, 1, 3});
}

TEST(Pack, VectorsAndTablesStayAsTheyAre) {
  expect_round_trip({WeightRole::kVector, WeightFormat::kF32, 3, 129, 1, 1});
  expect_round_trip({WeightRole::kEmbed, WeightFormat::kBf16, 77, 96, 1, 1});
  const std::vector<int64_t> ids = {3, 1, 4, 1, 5, 9};
  const std::unique_ptr<Backend> backend = tests::cpu(2);
  auto packed = backend->pack({.role = WeightRole::kVector, .rows = 2, .cols = 3,
                               .sources = {{.format = WeightFormat::kI32,
                                            .weight = {.data = ids.data(), .dtype = DType::kI64}}}});
  ASSERT_TRUE(packed.ok());
  const int32_t* narrow = static_cast<const int32_t*>(packed->view().plain);
  for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(narrow[i], ids[i]);
}

// The kernels do not know NaN codes; a published weight has none.
TEST(Pack, NanCodesAreRefused) {
  const std::unique_ptr<Backend> backend = tests::cpu(2);
  for (uint8_t code : {uint8_t{0x7f}, uint8_t{0xff}}) {
    Published fp8(WeightRole::kLinear, WeightFormat::kFp8Tile128, 40, 200, 1, 1, 7);
    EXPECT_TRUE(backend->pack(fp8.request).ok());
    fp8.weights[0][33 * 200 + 199] = code;
    const auto refused = backend->pack(fp8.request);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.status().code(), Code::kCorrupt);
    EXPECT_NE(refused.status().message().find("row 33"), std::string::npos) << refused.status().message();

    Published fp4(WeightRole::kExperts, WeightFormat::kNvfp4, 24, 160, 3, 1, 7);
    fp4.scales[2].back() = code;
    const auto scale = backend->pack(fp4.request);
    ASSERT_FALSE(scale.ok());
    EXPECT_NE(scale.status().message().find("row 23 of matrix 2"), std::string::npos) << scale.status().message();
  }
}

}  // namespace
}  // namespace dsv4
