// Activations: one arena for everything a step writes, planned at load for a largest batch. A step
// allocates nothing.
#pragma once

#include <cstdint>

#include "base/buffer.h"
#include "dsv4/status.h"
#include "formats/bf16.h"
#include "model/config.h"
#include "model/layer_plan.h"
#include "ops/backend.h"

namespace dsv4 {

struct Activations {
  int64_t max_rows = 0;        // T
  int64_t max_logit_rows = 0;  // R

  bf16* streams = nullptr;      // [T, hc, D]
  bf16* mtp_streams = nullptr;  // [T, hc, D] MTP blocks, where the model has them
  bf16* mtp_h = nullptr;        // [T, hc, D]
  bf16* x = nullptr;            // [T, D] sublayer input
  bf16* out = nullptr;          // [T, D] sublayer output
  float* post = nullptr;        // [T, hc]
  float* comb = nullptr;        // [T, hc, hc]

  bf16* qr = nullptr;   // [T, q_lora_rank]
  bf16* q = nullptr;    // [T, H, d]
  bf16* kv = nullptr;   // [T, d]
  bf16* o = nullptr;    // [T, H, d]
  bf16* o_lora = nullptr;  // [T, G * o_lora_rank]
  float* c = nullptr;      // [T, columns] compressor, main
  float* s = nullptr;
  float* index_c = nullptr;  // [T, columns] indexer's compressor
  float* index_s = nullptr;
  bf16* index_q = nullptr;        // [T, index_n_heads, e]
  bf16* index_weights = nullptr;  // [T, index_n_heads]
  int32_t* selected = nullptr;        // [T, index_topk]
  int32_t* selected_count = nullptr;  // [T]

  int32_t* expert_ids = nullptr;    // [T, k]
  float* expert_weights = nullptr;  // [T, k]

  bf16* head_x = nullptr;   // [R, D]
  float* logits = nullptr;  // [R, V]
  int32_t* tokens = nullptr;  // [R]

  Buffer arena;
};

// Bytes of the arena for a batch of at most max_rows rows with logits for at most max_logit_rows.
size_t activation_bytes(const ModelConfig& config, const ModelPlan& plan, int64_t max_rows,
                        int64_t max_logit_rows);

Result<Activations> allocate_activations(const ModelConfig& config, const ModelPlan& plan,
                                         int64_t max_rows, int64_t max_logit_rows, Backend& backend);

}  // namespace dsv4
