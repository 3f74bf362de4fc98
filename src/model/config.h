// ModelConfig: every field of a published config.json, under its Hugging Face name. The second
// spelling (inference/config.json, native names) fills the same fields.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dsv4/status.h"

namespace dsv4 {

// YaRN, for the layers with a compression ratio. original_max_position_embeddings == 0: no YaRN.
struct RopeScaling {
  double factor = 1.0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  int64_t original_max_position_embeddings = 0;
};

enum class DraftKind : uint8_t {
  kNone,
  kMtp,     // num_nextn_predict_layers MTP blocks
  kDspark,  // dspark_* keys: the draft part is another design; the main model is the same
};

// What the routed experts are stored as when no tensor says otherwise (NVFP4 is recognised per
// tensor, by its weight_scale_2).
enum class ExpertDtype : uint8_t { kFp4, kFp8 };

struct ModelConfig {
  std::string model_type = "deepseek_v4";

  int64_t vocab_size = 0;
  int64_t hidden_size = 0;                // D
  int64_t num_hidden_layers = 0;          // main layers
  int64_t num_hash_layers = 0;            // the first ones route by token id
  int64_t num_nextn_predict_layers = 0;   // MTP blocks, as the file says; see mtp_layers()
  std::vector<int64_t> compress_ratios;   // m per main layer, then one per draft block

  int64_t num_attention_heads = 0;        // H
  int64_t head_dim = 0;                   // d
  int64_t qk_rope_head_dim = 0;           // r, the last r of d
  int64_t q_lora_rank = 0;
  int64_t o_groups = 0;                   // G
  int64_t o_lora_rank = 0;
  int64_t sliding_window = 0;             // W
  int64_t index_n_heads = 0;
  int64_t index_head_dim = 0;
  int64_t index_topk = 0;

  int64_t n_routed_experts = 0;           // E
  int64_t n_shared_experts = 1;
  int64_t num_experts_per_tok = 0;        // k
  int64_t moe_intermediate_size = 0;
  double routed_scaling_factor = 1.0;
  double swiglu_limit = 0.0;              // clamp of the expert activations
  ExpertDtype expert_dtype = ExpertDtype::kFp4;

  int64_t hc_mult = 0;                    // hc, residual streams
  int64_t hc_sinkhorn_iters = 0;
  double hc_eps = 1e-6;
  double rms_norm_eps = 1e-6;

  double rope_theta = 10000.0;            // layers with m = 0
  double compress_rope_theta = 160000.0;  // layers with m > 0
  RopeScaling rope_scaling;
  int64_t max_position_embeddings = 1048576;

  int64_t bos_token_id = 0;
  int64_t eos_token_id = 1;

  DraftKind draft = DraftKind::kNone;
  std::string draft_note;  // why the draft part cannot be used, for the user; else empty

  int64_t ratio(int64_t layer) const { return compress_ratios[static_cast<size_t>(layer)]; }
  // MTP blocks that the model can run: 0 for a checkpoint whose draft part is of another kind.
  int64_t mtp_layers() const { return draft == DraftKind::kMtp ? num_nextn_predict_layers : 0; }
  // Rows of hc_{attn,ffn}_fn: pre, post and the hc x hc combination.
  int64_t hc_rows() const { return (2 + hc_mult) * hc_mult; }
};

// `origin` (a file name) stands at the start of every error line. The text may be hostile.
Result<ModelConfig> parse_config(std::string_view json, std::string_view origin);

Result<ModelConfig> load_config_file(const std::string& path);

// DIR/config.json, or DIR/inference/config.json where only that one exists.
Result<ModelConfig> load_config(const std::string& dir);

// Sizes that fit together and fit in the formats' blocks; parse_config already calls it.
Status validate(const ModelConfig& config, std::string_view origin);

// "flash" or "pro": the released preview models.
Result<ModelConfig> builtin_config(std::string_view name);

// config.json in the Hugging Face spelling, as published; without a draft part of another kind.
std::string to_json(const ModelConfig& config);

}  // namespace dsv4
