// A small checkpoint made by `dsv4 synth`, copies of it to break, and the means to break them.
#pragma once

#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace dsv4::cli {

using Json = nlohmann::ordered_json;

// SWA, CSA, HCA and an MTP block, as small as the formats allow.
inline Json small_config() {
  return Json::parse(R"({
    "model_type": "deepseek_v4", "vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 3,
    "num_hash_layers": 1, "num_nextn_predict_layers": 1, "compress_ratios": [0, 4, 128, 0],
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128, "qk_rope_head_dim": 64,
    "q_lora_rank": 128, "o_groups": 2, "o_lora_rank": 128, "sliding_window": 32, "index_n_heads": 2,
    "index_head_dim": 128, "index_topk": 16, "n_routed_experts": 4, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 128, "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc", "norm_topk_prob": true,
    "hidden_act": "silu", "swiglu_limit": 10.0, "hc_mult": 4, "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6, "rms_norm_eps": 1e-6, "rope_theta": 10000, "compress_rope_theta": 160000,
    "rope_scaling": {"type": "yarn", "factor": 16, "beta_fast": 32, "beta_slow": 1,
                     "original_max_position_embeddings": 65536},
    "max_position_embeddings": 4096, "tie_word_embeddings": false, "bos_token_id": 0,
    "eos_token_id": 1, "expert_dtype": "fp4", "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                            "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
  })");
}

class CheckpointTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new TempDir;
    write_file(*shared_ / "config.json", small_config().dump());
    const Outcome o = run({"synth", "--config", (*shared_ / "config.json").string(), "--single",
                           "--out", good().string()});
    ASSERT_EQ(o.code, 0) << o.err;
    ASSERT_TRUE(fs::exists(good() / "model.safetensors"));
  }
  static void TearDownTestSuite() {
    delete shared_;
    shared_ = nullptr;
  }
  static fs::path good() { return *shared_ / "good"; }

  // A copy to break, gone with the test.
  fs::path copy() {
    const fs::path to = dir_ / "model";
    fs::remove_all(to);
    fs::copy(good(), to, fs::copy_options::recursive);
    return to;
  }

  // Logits of a few tokens: reads config, every weight, and writes a file.
  Outcome logits(const fs::path& model, const std::string& tokens = "[5, 6, 7]",
                 const Options& options = {}) {
    write_file(dir_ / "tokens.json", tokens);
    return run({"logits", "-m", model.string(), "--tokens", (dir_ / "tokens.json").string(),
                "--out", (dir_ / "logits.safetensors").string()},
               options);
  }

  static void edit_config(const fs::path& model, const std::function<void(Json&)>& edit) {
    Json config = Json::parse(read_file(model / "config.json"));
    edit(config);
    write_file(model / "config.json", config.dump());
  }

  // Rewrites the header of model.safetensors; the data stays. `edit` may also change the data.
  static void edit_weights(const fs::path& model,
                           const std::function<void(Json& header, std::string& data)>& edit) {
    const fs::path path = model / "model.safetensors";
    const std::string file = read_file(path);
    uint64_t length = 0;
    std::memcpy(&length, file.data(), 8);
    Json header = Json::parse(file.substr(8, length));
    std::string data = file.substr(8 + length);
    edit(header, data);
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    length = text.size();
    std::string out(8, '\0');
    std::memcpy(out.data(), &length, 8);
    write_file(path, out + text + data);
  }

  TempDir dir_;

 private:
  static inline TempDir* shared_ = nullptr;
};

}  // namespace dsv4::cli
