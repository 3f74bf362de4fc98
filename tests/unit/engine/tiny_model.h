// The models that engine tests run: one of a few hundred kilobytes made on the spot, with every
// kind of layer and windows that 280 tokens fill many times, and the published-layout ones beside
// the checkout where they are.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "api/loaded_model.h"
#include "convert/synth.h"
#include "unit/checkpoint/temp_dir.h"

namespace dsv4::testing {

inline constexpr int64_t kVocab = 384;  // of the tiny model

inline ModelConfig tiny_config() {
  ModelConfig c;
  c.vocab_size = kVocab;
  c.hidden_size = 128;
  c.num_hidden_layers = 3;
  c.num_hash_layers = 1;
  c.num_nextn_predict_layers = 1;
  c.compress_ratios = {0, 4, 32, 0};
  c.num_attention_heads = 2;
  c.head_dim = 80;
  c.qk_rope_head_dim = 16;
  c.q_lora_rank = 128;
  c.o_groups = 2;
  c.o_lora_rank = 64;
  c.sliding_window = 16;
  c.index_n_heads = 2;
  c.index_head_dim = 32;
  c.index_topk = 8;
  c.n_routed_experts = 4;
  c.num_experts_per_tok = 2;
  c.moe_intermediate_size = 128;
  c.routed_scaling_factor = 1.5;
  c.swiglu_limit = 10.0;
  c.hc_mult = 4;
  c.hc_sinkhorn_iters = 3;
  c.rope_scaling = {.factor = 4.0, .original_max_position_embeddings = 128};
  c.max_position_embeddings = 1024;
  c.draft = DraftKind::kMtp;
  return c;
}

// Written once per test program, removed at its end.
inline const std::string& tiny_model_dir() {
  static TempDir temp;
  static const std::string dir = [] {
    std::string path = temp.file("tiny");
    const Status status = write_synthetic(tiny_config(), {.single_file = true}, path);
    EXPECT_TRUE(status.ok()) << status.message();
    return path;
  }();
  return dir;
}

inline std::vector<std::string> golden_dirs() {
  std::vector<std::string> dirs;
  for (const char* name : {"tiny-flash", "tiny-pro"}) {
    const std::string dir = std::string("../shared/golden/") + name;
    if (std::filesystem::exists(dir + "/config.json")) dirs.push_back(dir);
  }
  return dirs;
}

// A reproducible prompt without meaning.
inline std::vector<int32_t> some_tokens(int64_t n, int64_t vocab, uint32_t seed) {
  std::vector<int32_t> tokens;
  uint32_t x = seed * 2654435761u + 1;
  for (int64_t i = 0; i < n; ++i) {
    x = x * 1664525u + 1013904223u;
    tokens.push_back(static_cast<int32_t>((x >> 8) % static_cast<uint32_t>(vocab)));
  }
  return tokens;
}

}  // namespace dsv4::testing
