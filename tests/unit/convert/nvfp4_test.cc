// The cast of MXFP4 experts to NVFP4 keeps every value, and says where it could not.
#include "convert/nvfp4.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/str.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/writer.h"
#include "convert/inventory.h"
#include "formats/e2m1.h"
#include "formats/e4m3.h"
#include "formats/weight_format.h"
#include "model/tensor_table.h"
#include "small.h"
#include "unit/checkpoint/temp_dir.h"

namespace dsv4 {
namespace {

TEST(Nvfp4Block, ExactWithinTheWindow) {
  for (int max_byte : {17, 120, 254}) {
    const int m = nvfp4_global_exponent(static_cast<uint8_t>(max_byte));
    for (int b = max_byte; b >= max_byte - 17; --b) {
      std::array<uint8_t, 16> codes;
      for (size_t i = 0; i < 16; ++i) codes[i] = static_cast<uint8_t>(i | i << 4);
      const auto before = codes;
      uint8_t scale = 0;
      EXPECT_TRUE(cast_block_to_nvfp4(static_cast<uint8_t>(b), m, codes.data(), scale));
      EXPECT_EQ(codes, before);
      // 2^(b - 127) again, as a product of two FP32 values.
      EXPECT_EQ(e4m3_to_float(scale) * std::ldexp(1.0f, m), std::ldexp(1.0f, b - 127)) << b;
    }
  }
}

TEST(Nvfp4Block, BelowTheWindowCodesAreRounded) {
  const int m = nvfp4_global_exponent(127);
  uint8_t scale = 0;
  // One exponent below: values halve. 0, 1, 2, 3, 4, 6 are exact, .5 and 1.5 are not.
  std::array<uint8_t, 16> even{};
  for (size_t i = 0; i < 16; ++i) even[i] = static_cast<uint8_t>(i % 2 ? 0x72 : 0xc4);
  EXPECT_TRUE(cast_block_to_nvfp4(127 - 18, m, even.data(), scale));
  EXPECT_EQ(e4m3_to_float(scale), 0x1p-9f);
  EXPECT_EQ(even[0], 0xa2);  // -2, 2 -> -1, 1
  EXPECT_EQ(even[1], 0x51);  // 6, 1 -> 3, .5
  std::array<uint8_t, 16> odd{};
  odd[3] = 0x30;  // 1.5 -> .75 -> 1
  EXPECT_FALSE(cast_block_to_nvfp4(127 - 18, m, odd.data(), scale));
  EXPECT_EQ(odd[3], 0x20);
  // Far below nothing is left; zeros are exact at any scale.
  std::array<uint8_t, 16> far{}, zeros{};
  far[0] = 7;
  EXPECT_FALSE(cast_block_to_nvfp4(60, m, far.data(), scale));
  EXPECT_EQ(far[0], 0);
  EXPECT_TRUE(cast_block_to_nvfp4(0, m, zeros.data(), scale));
}

class Nvfp4Checkpoint : public testing::Test {
 protected:
  void SetUp() override {
    const Status status = write_synthetic(config_, {}, dir_.file("native"));
    ASSERT_TRUE(status.ok()) << status.message();
  }
  Nvfp4Report cast() {
    auto report = convert_to_nvfp4(dir_.file("native"), dir_.file("nvfp4"));
    EXPECT_TRUE(report.ok()) << report.status().message();
    return report.ok() ? *report : Nvfp4Report{};
  }
  const ModelConfig config_ = small_config();
  TempDir dir_;
};

TEST_F(Nvfp4Checkpoint, EveryValueIsKept) {
  const Nvfp4Report report = cast();
  EXPECT_EQ(report.cast_tensors, 4 * 8 * 3);
  EXPECT_EQ(report.rounded_blocks, 0);

  auto native = Checkpoint::open(dir_.file("native")), nvfp4 = Checkpoint::open(dir_.file("nvfp4"));
  ASSERT_TRUE(native.ok() && nvfp4.ok());
  EXPECT_EQ(report.payload_bytes, nvfp4->data_bytes());
  const auto read = load_config(dir_.file("nvfp4"));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(to_json(*read), to_json(config_));
  const ModelPlan plan = make_plan(config_);
  const Inventory inventory = take_inventory(*nvfp4, config_, plan);
  EXPECT_TRUE(inventory.complete());
  EXPECT_TRUE(inventory.unexpected.empty());
  EXPECT_EQ(inventory.expert_formats.at(WeightFormat::kNvfp4), 96);
  EXPECT_EQ(inventory.expert_formats.at(WeightFormat::kMxfp4), 24);  // MTP

  const TensorTable table(config_, plan);
  for (const TensorInfo& info : table.rows()) {
    if (info.group != TensorGroup::kExperts) continue;
    const WeightSource a = *find_weight(*native, info), b = *find_weight(*nvfp4, info);
    EXPECT_EQ(b.format, info.is_mtp ? WeightFormat::kMxfp4 : WeightFormat::kNvfp4);
    std::vector<float> x(static_cast<size_t>(info.cols())), y = x;
    for (int64_t row = 0; row < info.rows(); row += 7) {
      dequantise_row(a.format, a.weight.data, a.scale.data, a.global_scale, info.rows(), info.cols(),
                     row, x.data());
      dequantise_row(b.format, b.weight.data, b.scale.data, b.global_scale, info.rows(), info.cols(),
                     row, y.data());
      ASSERT_EQ(memcmp(x.data(), y.data(), x.size() * sizeof(float)), 0) << info.name;
    }
  }
}

TEST_F(Nvfp4Checkpoint, AllElseIsCopied) {
  cast();
  auto native = Checkpoint::open(dir_.file("native")), nvfp4 = Checkpoint::open(dir_.file("nvfp4"));
  ASSERT_TRUE(native.ok() && nvfp4.ok());
  int64_t copied = 0;
  for (const TensorEntry& entry : native->entries()) {
    const bool main_expert = entry.name.find("layers.") == 0 &&
                             entry.name.find(".ffn.experts.") != std::string::npos;
    if (main_expert) continue;
    const TensorEntry* other = nvfp4->find(entry.name);
    ASSERT_NE(other, nullptr) << entry.name;
    const TensorRef a = *native->view(entry), b = *nvfp4->view(*other);
    ASSERT_EQ(a.bytes(), b.bytes());
    EXPECT_EQ(memcmp(a.data, b.data, a.bytes()), 0) << entry.name;
    ++copied;
  }
  EXPECT_GT(copied, 100);
  EXPECT_FALSE(nvfp4->contains("layers.0.ffn.experts.0.w1.scale"));
  for (const char* file : {"tokenizer.json", "generation_config.json"}) {
    EXPECT_EQ(get_file(dir_.file(cat("native/", file))), get_file(dir_.file(cat("nvfp4/", file))));
  }
  const auto quant = nlohmann::json::parse(get_file(dir_.file("nvfp4/hf_quant_config.json")));
  EXPECT_EQ(quant["quantization"]["quant_algo"], "MIXED_PRECISION");
  EXPECT_EQ(quant["quantization"]["quantized_layers"].size(), 4u);
}

TEST_F(Nvfp4Checkpoint, GlobalScaleIsShared) {
  cast();
  auto nvfp4 = Checkpoint::open(dir_.file("nvfp4"));
  const auto global = [&](const char* projection) {
    const TensorRef ref = *nvfp4->tensor(cat("layers.1.ffn.experts.5.", projection, ".weight_scale_2"),
                                         DType::kF32, {});
    float value;
    memcpy(&value, ref.data, sizeof value);
    return value;
  };
  EXPECT_EQ(global("w1"), global("w3"));
  int exponent = 0;
  EXPECT_EQ(std::frexp(global("w2"), &exponent), 0.5f);  // a power of two
}

TEST_F(Nvfp4Checkpoint, RefusesNanScalesAndTwoCasts) {
  cast();
  EXPECT_EQ(convert_to_nvfp4(dir_.file("nvfp4"), dir_.file("again")).status().code(),
            Code::kUnsupported);
  EXPECT_FALSE(std::filesystem::exists(dir_.file("again/config.json")));

  auto native = Checkpoint::open(dir_.file("native"));
  ASSERT_TRUE(native.ok());
  const TensorEntry entry = *native->find("layers.1.ffn.experts.5.w2.scale");
  const std::string path = native->shard_path(entry.shard);
  std::string bytes = get_file(path);
  bytes[entry.offset + 3] = '\xff';
  put_file(path, bytes);
  const Status status = convert_to_nvfp4(dir_.file("native"), dir_.file("bad")).status();
  EXPECT_NE(status.message().find("layers.1.ffn.experts.5.w2.scale: expected finite"), std::string::npos)
      << status.message();
  TempDir empty;
  EXPECT_FALSE(convert_to_nvfp4(empty.path(), dir_.file("none")).ok());
}

}  // namespace
}  // namespace dsv4
