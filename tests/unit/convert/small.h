// A config of a few megabytes with every kind of layer.
#pragma once

#include <gtest/gtest.h>

#include "convert/synth.h"
#include "model/config.h"

namespace dsv4 {

// SWA, SWA, CSA, HCA and an MTP block; hash routing in the first three.
inline ModelConfig small_config() {
  ModelConfig c = *builtin_config("flash");
  c.hidden_size = 256;
  c.num_attention_heads = 4;
  c.head_dim = 128;
  c.q_lora_rank = 128;
  c.o_groups = 2;
  c.o_lora_rank = 64;
  c.index_n_heads = 8;
  c.index_head_dim = 64;
  c.index_topk = 16;
  c.moe_intermediate_size = 128;
  auto cut = cut_config(std::move(c), {.layers = 4, .experts = 8, .vocab = 512});
  EXPECT_TRUE(cut.ok()) << cut.status().message();
  return std::move(cut).value();
}

}  // namespace dsv4
