// The blocks of one layer, a file each. Every block reads act.x [T, D] (normed) and leaves its result
// in act.out [T, D].
#pragma once

#include "model/forward.h"

namespace dsv4 {

// What every block needs to know and may not change.
struct BlockContext {
  const ModelConfig& config;
  const LayerPlan& layer;
  const ForwardBatch& batch;
  const LayerCacheView& cache;
  RopeView rope;  // of this layer's class
};

Status attention_block(const BlockContext& block, const AttentionWeights& w, Activations& act,
                       OpContext& ctx);

// The compressor's projections are made with the attention's; these pool and store entries and index
// keys, and choose the entries that a row attends to.
CompressArgs entry_args(const BlockContext& block, const CompressorWeights& w, const Activations& act);
CompressArgs key_args(const BlockContext& block, const CompressorWeights& w, const Activations& act);
IndexSelectArgs select_args(const BlockContext& block, const Activations& act);

Status ffn_block(const BlockContext& block, const FfnWeights& w, Activations& act, OpContext& ctx);

// mHC around a sublayer: streams -> act.x before it, act.out -> streams after it; between two
// sublayers both at once.
Status mhc_between(const BlockContext& block, const HcSiteWeights& next, bf16* streams, Activations& act,
                   OpContext& ctx);
Status mhc_in(const BlockContext& block, const HcSiteWeights& w, const bf16* streams,
              Activations& act, OpContext& ctx);
Status mhc_out(const BlockContext& block, bf16* streams, Activations& act, OpContext& ctx);

template <class T>
const T* plain(const PackedWeight& w) {
  return static_cast<const T*>(w.view().plain);
}

}  // namespace dsv4
