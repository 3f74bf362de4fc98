// What sizes must satisfy before anything is computed from them.
#include <cmath>
#include <cstdint>

#include "base/str.h"
#include "formats/quantise.h"
#include "model/config.h"
#include "ops/args/sample.h"

namespace dsv4 {
namespace {

// Upper limits keep every product of three sizes within int64, far above any real model.
struct Range {
  const char* name;
  int64_t ModelConfig::*member;
  int64_t min, max;
};
constexpr Range kRanges[] = {
    {"vocab_size", &ModelConfig::vocab_size, 1, kMaxSampleVocab},
    {"hidden_size", &ModelConfig::hidden_size, 1, 1 << 18},
    {"num_hidden_layers", &ModelConfig::num_hidden_layers, 1, 4096},
    {"num_hash_layers", &ModelConfig::num_hash_layers, 0, 4096},
    {"num_nextn_predict_layers", &ModelConfig::num_nextn_predict_layers, 0, 16},
    {"num_attention_heads", &ModelConfig::num_attention_heads, 1, 1 << 12},
    {"head_dim", &ModelConfig::head_dim, 1, 1 << 14},
    {"qk_rope_head_dim", &ModelConfig::qk_rope_head_dim, 2, 1 << 14},
    {"q_lora_rank", &ModelConfig::q_lora_rank, 1, 1 << 18},
    {"o_groups", &ModelConfig::o_groups, 1, 1 << 12},
    {"o_lora_rank", &ModelConfig::o_lora_rank, 1, 1 << 18},
    {"sliding_window", &ModelConfig::sliding_window, 1, 1 << 20},
    {"n_routed_experts", &ModelConfig::n_routed_experts, 1, 1 << 14},
    {"num_experts_per_tok", &ModelConfig::num_experts_per_tok, 1, 1 << 10},
    {"moe_intermediate_size", &ModelConfig::moe_intermediate_size, 1, 1 << 18},
    {"hc_mult", &ModelConfig::hc_mult, 1, 64},
    {"hc_sinkhorn_iters", &ModelConfig::hc_sinkhorn_iters, 1, 1000},
    {"max_position_embeddings", &ModelConfig::max_position_embeddings, 1, int64_t{1} << 31},
};
// Only read where a layer has an indexer.
constexpr Range kIndexRanges[] = {
    {"index_n_heads", &ModelConfig::index_n_heads, 1, 1 << 12},
    {"index_head_dim", &ModelConfig::index_head_dim, 1, 1 << 12},
    {"index_topk", &ModelConfig::index_topk, 1, 1 << 20},
};

bool is_power_of_two(int64_t x) { return x > 0 && (x & (x - 1)) == 0; }

class Checker {
 public:
  Checker(const ModelConfig& config, std::string_view origin) : c_(config), origin_(origin) {}

  Status status;

  void expect(bool ok, std::string_view field, const std::string& expected,
              const std::string& found) {
    if (ok || !status.ok()) return;
    status = Status(Code::kInvalidArgument,
                    cat(origin_, ": ", field, ": expected ", expected, ", found ", found));
  }
  void range(const Range& r) {
    const int64_t value = c_.*r.member;
    expect(value >= r.min && value <= r.max, r.name, cat(r.min, " to ", r.max), cat(value));
  }
  // act8 takes whole groups along K of every quantised linear; MXFP4 and NVFP4 blocks divide them.
  void blocks(std::string_view field, int64_t value) {
    expect(value % kAct8Group == 0, field,
           cat("a multiple of ", kAct8Group, " (the quantisation groups of linear inputs)"),
           cat(value));
  }
  void positive(std::string_view field, double value, double above) {
    expect(std::isfinite(value) && value > above && value < 1e12, field,
           cat("a number above ", above), cat(value));
  }

 private:
  const ModelConfig& c_;
  std::string_view origin_;
};

void check_ratios(const ModelConfig& c, Checker& check) {
  const auto entries = static_cast<int64_t>(c.compress_ratios.size());
  const int64_t layers = c.num_hidden_layers;
  if (c.draft == DraftKind::kDspark) {
    check.expect(entries >= layers, "compress_ratios",
                 cat("at least ", layers, " entries (num_hidden_layers)"), cat(entries));
  } else {
    const int64_t drafts = c.num_nextn_predict_layers;
    check.expect(entries == layers + drafts, "compress_ratios",
                 cat(layers + drafts, " entries (", layers, " main layers and ", drafts,
                     " MTP blocks)"),
                 cat(entries));
  }
  for (int64_t i = 0; check.status.ok() && i < entries; ++i) {
    const int64_t m = c.ratio(i);
    const std::string field = cat("compress_ratios[", i, "]");
    check.expect(m == 0 || (is_power_of_two(m) && m <= 65536), field,
                 "0 (SWA), 4 (CSA) or another power of two up to 65536 (HCA)", cat(m));
    check.expect(i < layers || m == 0, field, "0 (a draft block has a window only)", cat(m));
  }
}

}  // namespace

Status validate(const ModelConfig& c, std::string_view origin) {
  Checker check(c, origin);
  for (const Range& r : kRanges) check.range(r);
  if (!check.status.ok()) return check.status;
  check_ratios(c, check);
  if (!check.status.ok()) return check.status;

  bool has_indexer = false;
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) has_indexer |= c.ratio(i) == 4;
  if (has_indexer) {
    for (const Range& r : kIndexRanges) check.range(r);
    check.expect(is_power_of_two(c.index_head_dim) && c.index_head_dim >= kIdx4Group,
                 "index_head_dim", cat("a power of two, at least ", kIdx4Group),
                 cat(c.index_head_dim));
    check.expect(c.index_head_dim >= c.qk_rope_head_dim, "index_head_dim",
                 cat("at least qk_rope_head_dim = ", c.qk_rope_head_dim), cat(c.index_head_dim));
  }

  check.expect(c.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim", "an even number (pairs rotate)",
               cat(c.qk_rope_head_dim));
  check.expect(c.head_dim >= c.qk_rope_head_dim, "head_dim",
               cat("at least qk_rope_head_dim = ", c.qk_rope_head_dim), cat(c.head_dim));
  check.expect((c.head_dim - c.qk_rope_head_dim) % kKv8Group == 0, "head_dim",
               cat("qk_rope_head_dim plus a multiple of ", kKv8Group,
                   " (the quantisation groups of cached keys)"),
               cat(c.head_dim, " with qk_rope_head_dim ", c.qk_rope_head_dim));
  check.expect(c.num_attention_heads % c.o_groups == 0, "num_attention_heads",
               cat("a multiple of o_groups = ", c.o_groups), cat(c.num_attention_heads));
  check.expect(c.num_experts_per_tok <= c.n_routed_experts, "num_experts_per_tok",
               cat("at most n_routed_experts = ", c.n_routed_experts), cat(c.num_experts_per_tok));
  check.expect(c.num_hash_layers <= c.num_hidden_layers, "num_hash_layers",
               cat("at most num_hidden_layers = ", c.num_hidden_layers), cat(c.num_hash_layers));
  check.expect(c.n_shared_experts == 1, "n_shared_experts", "1", cat(c.n_shared_experts));
  check.expect(c.num_hidden_layers * c.n_routed_experts <= (1 << 22), "n_routed_experts",
               "at most 4194304 experts in all layers", cat(c.n_routed_experts));

  check.blocks("hidden_size", c.hidden_size);
  check.blocks("q_lora_rank", c.q_lora_rank);
  check.blocks("moe_intermediate_size", c.moe_intermediate_size);
  check.blocks("o_groups * o_lora_rank", c.o_groups * c.o_lora_rank);

  check.positive("routed_scaling_factor", c.routed_scaling_factor, 0.0);
  check.positive("swiglu_limit", c.swiglu_limit, 0.0);
  check.positive("hc_eps", c.hc_eps, 0.0);
  check.positive("rms_norm_eps", c.rms_norm_eps, 0.0);
  check.positive("rope_theta", c.rope_theta, 1.0);
  check.positive("compress_rope_theta", c.compress_rope_theta, 1.0);
  if (const RopeScaling& yarn = c.rope_scaling; yarn.original_max_position_embeddings != 0) {
    check.expect(yarn.original_max_position_embeddings > 0 &&
                     yarn.original_max_position_embeddings <= (int64_t{1} << 31),
                 "rope_scaling.original_max_position_embeddings", "1 to 2147483648",
                 cat(yarn.original_max_position_embeddings));
    check.positive("rope_scaling.factor", yarn.factor, 0.0);
    check.positive("rope_scaling.beta_slow", yarn.beta_slow, 0.0);
    check.positive("rope_scaling.beta_fast", yarn.beta_fast, 0.0);
  }
  const auto is_token = [&](int64_t id) { return id >= 0 && id < c.vocab_size; };
  check.expect(is_token(c.bos_token_id), "bos_token_id", cat("0 to ", c.vocab_size - 1),
               cat(c.bos_token_id));
  check.expect(is_token(c.eos_token_id), "eos_token_id", cat("0 to ", c.vocab_size - 1),
               cat(c.eos_token_id));
  return check.status;
}

}  // namespace dsv4
