// The table against the published files: byte totals, counts, names.
#include "model/tensor_table.h"

#include <gtest/gtest.h>

#include <map>

#include "base/str.h"

namespace dsv4 {
namespace {

struct Totals {
  uint64_t bytes = 0;
  int64_t tensors = 0;
  std::map<DType, uint64_t> by_dtype;
  std::map<DType, int64_t> count_by_dtype;
  std::map<std::string, int64_t> by_block;  // "layers.3.", "mtp.0.", "" for the top level
};

ModelConfig config_of(const char* name) {
  auto config = builtin_config(name);
  EXPECT_TRUE(config.ok());
  EXPECT_TRUE(validate(*config, name).ok());
  return std::move(config).value();
}

Totals totals_of(const ModelConfig& config, bool nvfp4) {
  const ModelPlan plan = make_plan(config);
  const TensorTable table(config, plan);
  Totals totals;
  for (const TensorInfo& info : table.rows()) {
    const bool cast = nvfp4 && info.group == TensorGroup::kExperts && !info.is_mtp;
    for (const TensorSpec& t : stored_tensors(info, cast ? WeightFormat::kNvfp4 : info.format)) {
      totals.bytes += t.bytes();
      totals.by_dtype[t.dtype] += t.bytes();
      ++totals.count_by_dtype[t.dtype];
      ++totals.tensors;
      ++totals.by_block[info.layer < 0 ? "" : cat(info.is_mtp ? "mtp." : "layers.", info.layer)];
    }
  }
  return totals;
}

TEST(TensorTable, FlashAsPublished) {
  const Totals t = totals_of(config_of("flash"), false);
  EXPECT_EQ(t.bytes, 159'609'485'896u);
  EXPECT_EQ(t.tensors, 69'187);
  EXPECT_EQ(t.by_dtype.at(DType::kBF16), 2'830'518'528u);
  EXPECT_EQ(t.by_dtype.at(DType::kF32), 144'672'072u);
  EXPECT_EQ(t.by_dtype.at(DType::kE4M3), 6'023'020'544u);
  EXPECT_EQ(t.by_dtype.at(DType::kE8M0), 8'858'737'664u);
  EXPECT_EQ(t.by_dtype.at(DType::kI64), 18'616'320u);
  EXPECT_EQ(t.by_dtype.at(DType::kI8), 141'733'920'768u);
  EXPECT_EQ(t.by_block.at(""), 6);
  EXPECT_EQ(t.by_block.at("layers.0"), 1565);   // SWA
  EXPECT_EQ(t.by_block.at("layers.3"), 1569);   // HCA
  EXPECT_EQ(t.by_block.at("layers.42"), 1576);  // CSA
  EXPECT_EQ(t.by_block.at("mtp.0"), 1575);
}

TEST(TensorTable, ProAsPublished) {
  const Totals t = totals_of(config_of("pro"), false);
  EXPECT_EQ(t.bytes, 864'704'792'696u);
  EXPECT_EQ(t.tensors, 145'116);
  EXPECT_EQ(t.by_dtype.at(DType::kBF16), 5'633'798'656u);
  EXPECT_EQ(t.by_dtype.at(DType::kF32), 351'105'656u);
  EXPECT_EQ(t.by_dtype.at(DType::kE4M3), 23'169'335'296u);
  EXPECT_EQ(t.by_dtype.at(DType::kE8M0), 49'150'268'416u);
  EXPECT_EQ(t.by_dtype.at(DType::kI64), 18'616'320u);
  EXPECT_EQ(t.by_dtype.at(DType::kI8), 786'381'668'352u);
  EXPECT_EQ(t.count_by_dtype.at(DType::kBF16), 619);
  EXPECT_EQ(t.count_by_dtype.at(DType::kF32), 590);
  EXPECT_EQ(t.count_by_dtype.at(DType::kE4M3), 528);
  EXPECT_EQ(t.count_by_dtype.at(DType::kE8M0), 71'952);
  EXPECT_EQ(t.count_by_dtype.at(DType::kI64), 3);
  EXPECT_EQ(t.count_by_dtype.at(DType::kI8), 71'424);
  EXPECT_EQ(t.by_block.at("layers.0"), 2337);  // HCA
  EXPECT_EQ(t.by_block.at("layers.2"), 2344);  // CSA
  EXPECT_EQ(t.by_block.at("mtp.0"), 2343);
}

TEST(TensorTable, Nvfp4VariantsAsPublished) {
  const Totals flash = totals_of(config_of("flash"), true);
  EXPECT_EQ(flash.bytes, 168'266'793'544u);
  EXPECT_EQ(flash.tensors, 135'235);
  const Totals pro = totals_of(config_of("pro"), true);
  EXPECT_EQ(pro.bytes, 913'061'485'688u);
  EXPECT_EQ(pro.tensors, 285'660);
}

TEST(TensorTable, Fp8ExpertsOfBaseModels) {
  ModelConfig flash = config_of("flash"), pro = config_of("pro");
  flash.expert_dtype = pro.expert_dtype = ExpertDtype::kFp8;
  EXPECT_EQ(totals_of(flash, false).bytes, 292'502'338'120u);
  EXPECT_EQ(totals_of(pro, false).bytes, 1'602'033'600'632u);
}

TEST(TensorTable, ShapesAndShards) {
  const ModelConfig config = config_of("flash");
  const TensorTable table(config, make_plan(config));
  EXPECT_EQ(table.shard_count(), 46u);
  EXPECT_EQ(table.find("embed.weight")->shard, 0u);
  EXPECT_EQ(table.find("layers.42.attn.wkv.weight")->shard, 43u);
  EXPECT_EQ(table.find("hc_head_fn")->shard, 44u);
  EXPECT_EQ(table.find("mtp.0.e_proj.weight")->shard, 45u);
  EXPECT_EQ(table.find("mtp.0.head.weight"), nullptr);

  const auto stored = [&](const char* name) {
    const TensorInfo* info = table.find(name);
    EXPECT_NE(info, nullptr) << name;
    std::string line;
    for (const TensorSpec& t : stored_tensors(*info, info->format)) {
      line += cat(t.name, " ", dtype_name(t.dtype), " ", to_string(t.shape), "; ");
    }
    return line;
  };
  EXPECT_EQ(stored("layers.2.attn.wo_a.weight"),
            "layers.2.attn.wo_a.weight F8_E4M3 [8192, 4096]; "
            "layers.2.attn.wo_a.scale F8_E8M0 [64, 32]; ");
  EXPECT_EQ(stored("layers.2.attn.indexer.compressor.ape"),
            "layers.2.attn.indexer.compressor.ape F32 [4, 256]; ");
  EXPECT_EQ(stored("layers.3.attn.compressor.ape"), "layers.3.attn.compressor.ape F32 [128, 512]; ");
  EXPECT_EQ(stored("layers.0.ffn.gate.tid2eid"), "layers.0.ffn.gate.tid2eid I64 [129280, 6]; ");
  EXPECT_EQ(stored("layers.7.ffn.experts.255.w2.weight"),
            "layers.7.ffn.experts.255.w2.weight I8 [4096, 1024]; "
            "layers.7.ffn.experts.255.w2.scale F8_E8M0 [4096, 64]; ");

  const TensorInfo* w1 = table.find("layers.7.ffn.experts.1.w1.weight");
  const auto nvfp4 = stored_tensors(*w1, WeightFormat::kNvfp4);
  ASSERT_EQ(nvfp4.size(), 4u);
  EXPECT_EQ(nvfp4[0].dtype, DType::kU8);
  EXPECT_EQ(nvfp4[1].name, "layers.7.ffn.experts.1.w1.weight_scale");
  EXPECT_EQ(nvfp4[1].shape, (Shape{2048, 256}));
  EXPECT_EQ(nvfp4[2].shape, Shape{});
}

}  // namespace
}  // namespace dsv4
