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

Status compressor_block(const BlockContext& block, const AttentionWeights& w, Activations& act,
                        OpContext& ctx) {
  const LayerPlan& layer = block.layer;
  const ModelConfig& config = block.config;
  if (!layer.has_compressor()) return {};
  CompressorSpec spec{.ratio = layer.ratio, .overlap = layer.overlap, .dim = config.head_dim};
  DSV4_TRY(ctx.ops.compress(ctx, compress_args(block, w.compressor, act.c, act.s, spec)));
  if (!layer.has_indexer()) return {};

  spec.dim = config.index_head_dim;
  CompressArgs keys = compress_args(block, w.index_compressor, act.index_c, act.index_s, spec);
  keys.index_key = true;
  keys.tail = block.cache.key_tail;
  keys.out = block.cache.keys;
  DSV4_TRY(ctx.ops.compress(ctx, keys));
  return ctx.ops.index_select(ctx, {.batch = block.batch.view,
                                    .q = act.index_q,
                                    .weights = act.index_weights,
                                    .keys = block.cache.keys,
                                    .rope = block.rope,
                                    .heads = config.index_n_heads,
                                    .e = config.index_head_dim,
                                    .ratio = layer.ratio,
                                    .topk = config.index_topk,
                                    .selected = act.selected,
                                    .selected_count = act.selected_count});
}

}  // namespace dsv4
