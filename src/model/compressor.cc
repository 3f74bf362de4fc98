// Compressed entries and indexer keys (MODEL.md section 2.4).
#include "model/blocks.h"

namespace dsv4 {
namespace {

CompressArgs compress_args(const BlockContext& block, const CompressorWeights& w, const float* c,
                           const float* s, const CompressorSpec& spec) {
  return {.batch = block.batch.view,
          .c = c,
          .s = s,
          .ape = plain<float>(w.ape),
          .norm = plain<bf16>(w.norm),
          .spec = spec,
          .index_key = false,
          .rope = block.rope,
          .eps = static_cast<float>(block.config.rms_norm_eps),
          .tail = block.cache.tail,
          .out = block.cache.entries};
}

}  // namespace

CompressArgs entry_args(const BlockContext& block, const CompressorWeights& w, const Activations& act) {
  const LayerPlan& layer = block.layer;
  return compress_args(block, w, act.c, act.s,
                       {.ratio = layer.ratio, .overlap = layer.overlap, .dim = block.config.head_dim});
}

CompressArgs key_args(const BlockContext& block, const CompressorWeights& w, const Activations& act) {
  const LayerPlan& layer = block.layer;
  CompressArgs keys =
      compress_args(block, w, act.index_c, act.index_s,
                    {.ratio = layer.ratio, .overlap = layer.overlap, .dim = block.config.index_head_dim});
  keys.index_key = true;
  keys.tail = block.cache.key_tail;
  keys.out = block.cache.keys;
  return keys;
}

IndexSelectArgs select_args(const BlockContext& block, const Activations& act) {
  const ModelConfig& config = block.config;
  return {.batch = block.batch.view,
          .q = act.index_q,
          .weights = act.index_weights,
          .keys = block.cache.keys,
          .rope = block.rope,
          .heads = config.index_n_heads,
          .e = config.index_head_dim,
          .ratio = block.layer.ratio,
          .topk = config.index_topk,
          .selected = act.selected,
          .selected_count = act.selected_count};
}

}  // namespace dsv4
