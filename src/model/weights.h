// Weights: the packed weights of a model, a named struct per block, in the order of the paper.
#pragma once

#include <vector>

#include "base/buffer.h"
#include "base/log.h"
#include "checkpoint/checkpoint.h"
#include "dsv4/status.h"
#include "model/config.h"
#include "model/layer_plan.h"
#include "ops/backend.h"
#include "ops/weight.h"

namespace dsv4 {

// One mHC site.
struct HcSiteWeights {
  PackedWeight fn, base, scale;
  PackedWeight norm;  // the RMSNorm of the sublayer behind it
};

struct CompressorWeights {
  PackedWeight wkv, wgate;  // [columns, D] BF16
  PackedWeight ape;         // [m, columns]
  PackedWeight norm;        // [dim]
};

struct AttentionWeights {
  PackedWeight wq_a, q_norm, wq_b;
  PackedWeight wkv, kv_norm;
  PackedWeight sink;
  PackedWeight wo_a, wo_b;
  CompressorWeights compressor;  // CSA, HCA
  PackedWeight index_wq_b;       // CSA
  PackedWeight index_weights_proj;
  CompressorWeights index_compressor;
};

struct FfnWeights {
  PackedWeight gate;
  PackedWeight bias;     // score routing
  PackedWeight tid2eid;  // hash routing
  PackedWeight w1, w2, w3;
  PackedWeight shared_w1, shared_w2, shared_w3;
};

struct LayerWeights {
  HcSiteWeights hc_attn, hc_ffn;
  AttentionWeights attn;
  FfnWeights ffn;
};

struct HeadWeights {
  PackedWeight fn, base, scale;  // hc_head
  PackedWeight norm;
};

struct MtpWeights {
  PackedWeight enorm, hnorm, e_proj, h_proj;
  LayerWeights layer;
  HeadWeights head;
};

struct Weights {
  PackedWeight embed, lm_head;
  HeadWeights head;
  std::vector<LayerWeights> layers;
  std::vector<MtpWeights> mtp;

  // RoPE frequencies [r/2] per layer class, in the backend's memory.
  Buffer rope_plain, rope_compressed;

  size_t bytes = 0;  // owned by all of the above
};

// Reads every tensor the plan names, checks dtype, shape and scales, and packs it.
Result<Weights> bind_weights(const Checkpoint& checkpoint, const ModelConfig& config,
                             const ModelPlan& plan, Backend& backend, const ProgressSink& progress);

// Bytes that bind_weights would own, from headers alone.
Result<size_t> packed_weight_bytes(const Checkpoint& checkpoint, const ModelConfig& config,
                                   const ModelPlan& plan, const Backend& backend);

}  // namespace dsv4
