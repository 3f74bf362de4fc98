// config.json of both spellings, and one line of error for each mistake.
#include "model/config.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/str.h"
#include "model/layer_plan.h"

namespace dsv4 {
namespace {

using Json = nlohmann::ordered_json;

Json flash_json() { return Json::parse(to_json(*builtin_config("flash"))); }

ModelConfig parsed(const Json& json) {
  auto config = parse_config(json.dump(), "config.json");
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.ok() ? *config : ModelConfig{};
}

// The error of Flash's config with one key replaced (null: removed).
std::string refused(const char* key, const Json& value) {
  Json json = flash_json();
  value.is_null() ? static_cast<void>(json.erase(key)) : static_cast<void>(json[key] = value);
  const auto config = parse_config(json.dump(), "config.json");
  if (config.ok()) return "accepted";
  const std::string& line = config.status().message();
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_EQ(line.rfind("config.json: ", 0), 0u) << line;
  return line;
}

bool has(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}
#define EXPECT_HAS(text, part) EXPECT_TRUE(has(text, part)) << (text)

TEST(Config, WrittenAndReadBack) {
  for (const char* name : {"flash", "pro"}) {
    const ModelConfig config = *builtin_config(name);
    const ModelConfig back = parsed(Json::parse(to_json(config)));
    EXPECT_EQ(to_json(back), to_json(config));
    EXPECT_EQ(back.compress_ratios, config.compress_ratios);
    EXPECT_EQ(back.mtp_layers(), 1);
  }
  EXPECT_FALSE(builtin_config("huge").ok());
}

TEST(Config, PublishedRatios) {
  const ModelConfig flash = *builtin_config("flash"), pro = *builtin_config("pro");
  EXPECT_EQ(flash.compress_ratios.size(), 44u);
  EXPECT_EQ(pro.compress_ratios.size(), 62u);
  const auto count = [](const ModelConfig& c, AttentionKind kind) {
    int n = 0;
    for (const LayerPlan& layer : make_plan(c).layers) n += layer.attention == kind;
    return n;
  };
  EXPECT_EQ(count(flash, AttentionKind::kSwa), 2);
  EXPECT_EQ(count(flash, AttentionKind::kCsa), 21);
  EXPECT_EQ(count(flash, AttentionKind::kHca), 20);
  EXPECT_EQ(count(pro, AttentionKind::kSwa), 0);
  EXPECT_EQ(count(pro, AttentionKind::kCsa), 30);
  EXPECT_EQ(count(pro, AttentionKind::kHca), 31);
}

TEST(Config, PlanOfEachLayerKind) {
  const ModelPlan plan = make_plan(*builtin_config("flash"));
  ASSERT_EQ(plan.layers.size(), 43u);
  ASSERT_EQ(plan.mtp.size(), 1u);
  EXPECT_EQ(plan.layers[0].rope.theta, 10000.0);
  EXPECT_EQ(plan.layers[0].rope.yarn.original_max_position_embeddings, 0);
  EXPECT_EQ(plan.layers[2].rope.theta, 160000.0);
  EXPECT_EQ(plan.layers[2].rope.yarn.original_max_position_embeddings, 65536);
  EXPECT_EQ(plan.layers[2].router, RouterKind::kHash);
  EXPECT_EQ(plan.layers[3].router, RouterKind::kScore);
  EXPECT_TRUE(plan.layers[2].overlap && plan.layers[2].has_indexer());
  EXPECT_EQ(plan.layers[2].compressor_columns(512), 1024);
  EXPECT_TRUE(!plan.layers[3].overlap && plan.layers[3].has_compressor());
  EXPECT_EQ(plan.layers[3].prefix(), "layers.3.");
  const LayerPlan& mtp = plan.mtp[0];
  EXPECT_TRUE(mtp.is_mtp && mtp.router == RouterKind::kScore && mtp.ratio == 0);
  EXPECT_EQ(mtp.prefix(), "mtp.0.");
}

TEST(Config, NativeSpelling) {
  const ModelConfig flash = *builtin_config("flash");
  Json native = {{"vocab_size", 129280}, {"dim", 4096}, {"moe_inter_dim", 2048}, {"n_layers", 43},
                 {"n_hash_layers", 3}, {"n_heads", 64}, {"n_routed_experts", 256},
                 {"n_shared_experts", 1}, {"n_activated_experts", 6}, {"score_func", "sqrtsoftplus"},
                 {"route_scale", 1.5}, {"swiglu_limit", 10.0}, {"q_lora_rank", 1024},
                 {"head_dim", 512}, {"rope_head_dim", 64}, {"o_groups", 8}, {"o_lora_rank", 1024},
                 {"window_size", 128}, {"original_seq_len", 65536}, {"rope_theta", 10000.0},
                 {"rope_factor", 16}, {"beta_fast", 32}, {"beta_slow", 1}, {"index_n_heads", 64},
                 {"index_head_dim", 128}, {"index_topk", 512}, {"hc_mult", 4},
                 {"hc_sinkhorn_iters", 20}, {"dtype", "fp8"}, {"scale_fmt", "ue8m0"},
                 {"expert_dtype", "fp4"}, {"compress_rope_theta", 160000.0},
                 {"compress_ratios", flash.compress_ratios}};
  EXPECT_EQ(to_json(parsed(native)), to_json(flash));
  native.erase("vocab_size");  // the default of the code
  EXPECT_EQ(parsed(native).vocab_size, 129280);
  native["window_size"] = "128";
  EXPECT_HAS(parse_config(native.dump(), "x").status().message(),
             "x: window_size: expected an integer, found \"128\"");
}

TEST(Config, WhatMayBeAbsent) {
  for (const char* key : {"expert_dtype", "quantization_config", "torch_dtype", "use_cache",
                          "num_nextn_predict_layers", "bos_token_id", "rms_norm_eps"}) {
    Json json = flash_json();
    json.erase(key);
    EXPECT_EQ(to_json(parsed(json)), to_json(*builtin_config("flash"))) << key;
  }
  for (const char* key : {"hidden_size", "compress_ratios", "rope_theta", "sliding_window"}) {
    EXPECT_HAS(refused(key, nullptr), cat(key, " is missing"));
  }
}

TEST(Config, ModelType) {
  EXPECT_HAS(refused("model_type", "llama"), "model_type: expected \"deepseek_v4\", found \"llama\"");
  EXPECT_HAS(refused("model_type", nullptr), "found no such key");
  EXPECT_HAS(refused("model_type", 4), "model_type: expected a string, found 4");
}

TEST(Config, RatiosMustMatchTheLayers) {
  std::vector<int64_t> ratios = builtin_config("flash")->compress_ratios;
  ratios.pop_back();
  EXPECT_HAS(refused("compress_ratios", ratios),
             "compress_ratios: expected 44 entries (43 main layers and 1 MTP blocks), found 43");
  ratios.insert(ratios.end(), 2, 0);
  EXPECT_HAS(refused("compress_ratios", ratios), "found 45");
  EXPECT_HAS(refused("num_hidden_layers", 42), "expected 43 entries");
  ratios.pop_back();
  ratios[7] = 5;
  EXPECT_HAS(refused("compress_ratios", ratios), "compress_ratios[7]: expected 0 (SWA)");
  ratios[7] = 128;
  ratios[43] = 4;
  EXPECT_HAS(refused("compress_ratios", ratios), "compress_ratios[43]: expected 0");
  EXPECT_HAS(refused("compress_ratios", {0, -4}), "compress_ratios: expected a list of integers >= 0");
  EXPECT_HAS(refused("compress_ratios", 4), "compress_ratios: expected a list");
}

TEST(Config, WrongTypesNameTheField) {
  EXPECT_HAS(refused("hidden_size", "4096"), "hidden_size: expected an integer, found \"4096\"");
  EXPECT_HAS(refused("hidden_size", 4096.0), "hidden_size: expected an integer");
  EXPECT_HAS(refused("hidden_size", true), "hidden_size: expected an integer, found true");
  EXPECT_HAS(refused("hidden_size", 18446744073709551615u), "hidden_size: expected an integer");
  EXPECT_HAS(refused("rope_theta", "x"), "rope_theta: expected a number");
  EXPECT_HAS(refused("rope_scaling", 3), "rope_scaling: expected an object");
  EXPECT_HAS(refused("rope_scaling", {{"type", "linear"}, {"factor", 2}}),
             "rope_scaling: type: expected \"yarn\", found \"linear\"");
  EXPECT_HAS(refused("quantization_config", "fp8"), "quantization_config: expected an object");
  EXPECT_HAS(refused("expert_dtype", "int4"), "expert_dtype: expected \"fp4\" or \"fp8\"");
  for (const char* text : {"", "[]", "{", "nul", "{} {}"}) {
    EXPECT_HAS(parse_config(text, "c").status().message(), "c: expected a JSON object") << text;
  }
}

TEST(Config, SizesMustFitTogether) {
  EXPECT_HAS(refused("hidden_size", 0), "hidden_size: expected 1 to 262144, found 0");
  EXPECT_HAS(refused("vocab_size", -1), "vocab_size");
  EXPECT_HAS(refused("hidden_size", int64_t{1} << 60), "hidden_size: expected 1 to");
  EXPECT_HAS(refused("n_routed_experts", int64_t{1} << 40), "n_routed_experts");
  EXPECT_HAS(refused("head_dim", 32), "head_dim: expected at least qk_rope_head_dim = 64, found 32");
  EXPECT_HAS(refused("head_dim", 100), "head_dim: expected qk_rope_head_dim plus a multiple of 64");
  EXPECT_HAS(refused("qk_rope_head_dim", 63), "qk_rope_head_dim: expected an even number");
  EXPECT_HAS(refused("o_groups", 7), "num_attention_heads: expected a multiple of o_groups = 7");
  EXPECT_HAS(refused("hidden_size", 4000), "hidden_size: expected a multiple of 128");
  EXPECT_HAS(refused("moe_intermediate_size", 96), "moe_intermediate_size: expected a multiple");
  EXPECT_HAS(refused("q_lora_rank", 100), "q_lora_rank: expected a multiple");
  EXPECT_HAS(refused("num_experts_per_tok", 257), "num_experts_per_tok: expected at most");
  EXPECT_HAS(refused("num_hash_layers", 44), "num_hash_layers: expected at most");
  EXPECT_HAS(refused("index_head_dim", 96), "index_head_dim: expected a power of two");
  EXPECT_HAS(refused("index_topk", 0), "index_topk");
  EXPECT_HAS(refused("eos_token_id", 129280), "eos_token_id: expected 0 to 129279");
  EXPECT_HAS(refused("rms_norm_eps", 0.0), "rms_norm_eps");
  EXPECT_HAS(refused("hidden_act", "gelu"), "hidden_act: expected \"silu\", found \"gelu\"");
  EXPECT_HAS(refused("num_key_value_heads", 2), "num_key_value_heads: expected 1, found 2");
}

TEST(Config, DsparkKeepsTheMainModel) {
  Json json = flash_json();
  std::vector<int64_t> ratios = builtin_config("flash")->compress_ratios;
  ratios.insert(ratios.end(), 2, 0);
  json["compress_ratios"] = ratios;
  json["dspark_block_size"] = 5;
  json["dspark_target_layer_ids"] = {40, 41, 42};
  const ModelConfig config = parsed(json);
  EXPECT_EQ(config.draft, DraftKind::kDspark);
  EXPECT_FALSE(config.draft_note.empty());
  EXPECT_EQ(config.mtp_layers(), 0);
  EXPECT_EQ(make_plan(config).layers.size(), 43u);
}

TEST(Config, CompressedTensorsExportIsRecognised) {
  Json json = flash_json();
  json["quantization_config"] = {{"quant_method", "compressed-tensors"}};
  const auto config = parse_config(json.dump(), "c");
  EXPECT_EQ(config.status().code(), Code::kUnsupported);
  EXPECT_HAS(config.status().message(), "compressed-tensors");
}

TEST(Config, GoldenConfigs) {
  for (const char* name : {"tiny-flash", "tiny-pro"}) {
    const std::string dir = cat("../shared/golden/", name);
    if (!std::filesystem::exists(dir)) GTEST_SKIP() << dir << " is not here";
    const auto config = load_config(dir);
    ASSERT_TRUE(config.ok()) << config.status().message();
    EXPECT_EQ(config->mtp_layers(), 1);
    EXPECT_EQ(config->vocab_size, 512);
  }
}

TEST(Config, MissingFile) {
  EXPECT_EQ(load_config("no/such/folder").status().code(), Code::kNotFound);
}

}  // namespace
}  // namespace dsv4
