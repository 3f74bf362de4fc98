// The forward pass, straight-line in the order of the paper. State is passed: what a function may
// change is in its signature.
#pragma once

#include <cstdint>
#include <span>

#include "dsv4/status.h"
#include "model/activations.h"
#include "model/config.h"
#include "model/layer_plan.h"
#include "model/weights.h"
#include "ops/cache_spec.h"
#include "ops/cache_view.h"
#include "ops/context.h"

namespace dsv4 {

// A model ready to run: what was read, how its layers are laid out, and its packed weights.
struct Model {
  ModelConfig config;
  ModelPlan plan;
  Weights weights;
};

// Prefill and decode rows of several sequences, mixed. All pointers are in the backend's memory.
struct ForwardBatch {
  BatchView view;
  const int32_t* logit_rows = nullptr;  // [R] rows that need logits
  const SampleRow* samples = nullptr;   // [R] which of them become tokens, and how
  int64_t R = 0;
};

// What every layer stores; index i of the views below is layer i, MTP blocks after the main layers.
CacheSpec make_cache_spec(const ModelConfig& config, const ModelPlan& plan);

// embed -> layers -> head. Leaves act.streams = the residual streams after the last layer (the MTP
// block's input), act.logits [R, V] and act.tokens [R].
Status forward(const Model& model, Activations& act, const ForwardBatch& batch,
               std::span<const LayerCacheView> cache, OpContext& ctx);

// One layer on `streams` [T, hc, D] in place; `layer` may be an MTP block's layer.
Status run_layer(const Model& model, const LayerWeights& weights, const LayerPlan& layer,
                 bf16* streams, Activations& act, const ForwardBatch& batch,
                 const LayerCacheView& cache, OpContext& ctx);

// hc_head, norm and lm_head of the rows batch.logit_rows of `streams` into act.logits [R, V], and the
// tokens that batch.samples asks for into act.tokens [R].
Status run_head(const Model& model, const HeadWeights& head, const bf16* streams, Activations& act,
                const ForwardBatch& batch, OpContext& ctx);

// MTP block `block`: batch.view.tokens holds the token at p+1 for the row at position p, `streams` the
// main model's streams before hc_head (may be act.streams). Leaves logits for token p+2 in
// act.logits [R, V], act.tokens [R] and the block's streams in act.mtp_streams.
Status forward_mtp(const Model& model, int64_t block, const bf16* streams, Activations& act,
                   const ForwardBatch& batch, const LayerCacheView& cache, OpContext& ctx);

}  // namespace dsv4
