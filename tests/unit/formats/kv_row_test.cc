// A row that kv8 has rounded survives 8 bits and back, bit for bit.
#include "formats/kv_row.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace dsv4 {
namespace {

std::vector<bf16> there_and_back(const std::vector<bf16>& row, int64_t r) {
  const auto d = static_cast<int64_t>(row.size());
  std::vector<uint8_t> codes(static_cast<size_t>(kv_row_fp8_bytes(d, r)), 0xee);
  std::vector<bf16> back(row.size());
  encode_kv_row(row.data(), d, r, codes.data());
  decode_kv_row(codes.data(), d, r, back.data());
  return back;
}

void expect_survives(const std::vector<bf16>& row, int64_t r) {
  const std::vector<bf16> back = there_and_back(row, r);
  for (size_t i = 0; i < row.size(); ++i) {
    ASSERT_EQ(back[i].bits, row[i].bits) << "element " << i << ": " << to_float(row[i]) << " came back as " << to_float(back[i]);
  }
}

void round_row(std::vector<bf16>& row, int64_t r) {
  const int64_t n = static_cast<int64_t>(row.size()) - r;
  for (int64_t at = 0; at < n; at += kKv8Group) {
    kv8_round(row.data() + at, static_cast<int>(std::min<int64_t>(kKv8Group, n - at)));
  }
}

// Whatever the highest code of a group and its scale: the scale that encode_kv_row finds may be another one, the
// values are not.
TEST(KvRow, EveryCodeWithEveryScaleOfAGroupSurvives) {
  const int lowest = act8_scale_byte(0.0f);
  for (int scale = lowest; scale <= 246; ++scale) {
    for (int highest = 0; highest < 0x7f; ++highest) {
      for (int from = 0; from <= highest; from += kKv8Group - 1) {
        std::vector<bf16> row(kKv8Group);
        const float times = ue8m0_to_float(static_cast<uint8_t>(scale));
        for (int i = 0; i < kKv8Group; ++i) {
          const int code = i == 0 ? highest : std::min(from + i, highest);
          row[static_cast<size_t>(i)] = to_bf16(e4m3_to_float(static_cast<uint8_t>(code | i % 2 << 7)) * times);
        }
        round_row(row, 0);
        ASSERT_NO_FATAL_FAILURE(expect_survives(row, 0)) << "scale " << scale << ", highest code " << highest;
      }
    }
  }
}

TEST(KvRow, RowsOfAnyShapeAndSizeSurvive) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (const auto& [d, r] : {std::pair<int64_t, int64_t>{512, 64}, {576, 64}, {64, 16}, {64, 64}, {192, 64}, {100, 0}, {2, 2}}) {
    for (int i = 0; i < 300; ++i) {
      std::vector<bf16> row(static_cast<size_t>(d));
      const float spread = std::ldexp(1.0f, static_cast<int>(random() % 80) - 40);
      for (bf16& x : row) x = to_bf16(random() % 16 == 0 ? 0.0f : normal(random) * spread);
      round_row(row, r);
      ASSERT_NO_FATAL_FAILURE(expect_survives(row, r)) << "d " << d << ", r " << r;
    }
  }
}

TEST(KvRow, ANanSpoilsItsGroupAndNoOther) {
  std::vector<bf16> row(192, to_bf16(0.5f));
  row[70] = bf16{0x7fc0};
  const std::vector<bf16> back = there_and_back(row, 0);
  for (size_t i = 0; i < row.size(); ++i) EXPECT_EQ(std::isnan(to_float(back[i])), i / 64 == 1) << i;
}

TEST(KvRow, EightScalesAreTheLimit) {
  EXPECT_TRUE(has_kv_row(512, 64));
  EXPECT_TRUE(has_kv_row(512, 0));
  EXPECT_FALSE(has_kv_row(640, 64));
}

}  // namespace
}  // namespace dsv4
