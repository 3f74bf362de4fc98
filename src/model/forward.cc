#include "model/forward.h"

#include <numeric>

#include "model/blocks.h"

namespace dsv4 {
namespace {

LayerCacheSpec layer_cache_spec(const ModelConfig& config, const LayerPlan& layer) {
  LayerCacheSpec spec{.window = layer.window, .head_dim = config.head_dim,
                      .rope_dim = config.qk_rope_head_dim};
  if (layer.has_compressor()) {
    spec.entries = {.ratio = layer.ratio, .overlap = layer.overlap, .dim = config.head_dim};
  }
  if (layer.has_indexer()) {
    spec.keys = {.ratio = layer.ratio, .overlap = layer.overlap, .dim = config.index_head_dim};
  }
  return spec;
}

BlockContext block_context(const Model& model, const LayerPlan& layer, const ForwardBatch& batch,
                           const LayerCacheView& cache) {
  const Buffer& freqs = layer.has_compressor() ? model.weights.rope_compressed : model.weights.rope_plain;
  return {.config = model.config,
          .layer = layer,
          .batch = batch,
          .cache = cache,
          .rope = {.freqs = freqs.as<float>(), .r = model.config.qk_rope_head_dim}};
}

// From the normed input of the attention in act.x to the FFN's result in act.out.
Status sublayers(const BlockContext& block, const LayerWeights& w, bf16* streams, Activations& act,
                 OpContext& ctx) {
  DSV4_TRY(attention_block(block, w.attn, act, ctx));
  DSV4_TRY(mhc_between(block, w.hc_ffn, streams, act, ctx));
  return ffn_block(block, w.ffn, act, ctx);
}

}  // namespace

CacheSpec make_cache_spec(const ModelConfig& config, const ModelPlan& plan) {
  CacheSpec spec;
  for (const LayerPlan& layer : plan.layers) spec.layers.push_back(layer_cache_spec(config, layer));
  for (const LayerPlan& layer : plan.mtp) spec.layers.push_back(layer_cache_spec(config, layer));
  // A span is a whole number of entries in every region: a multiple of every ratio.
  constexpr int64_t kSpan = 256;
  int64_t multiple = 1;
  for (const LayerPlan& layer : plan.layers) {
    if (layer.ratio) multiple = std::lcm(multiple, layer.ratio);
  }
  spec.span = (kSpan + multiple - 1) / multiple * multiple;
  return spec;
}

Status run_layer(const Model& model, const LayerWeights& w, const LayerPlan& layer, bf16* streams,
                 Activations& act, const ForwardBatch& batch, const LayerCacheView& cache,
                 OpContext& ctx) {
  const BlockContext block = block_context(model, layer, batch, cache);
  DSV4_TRY(mhc_in(block, w.hc_attn, streams, act, ctx));
  DSV4_TRY(sublayers(block, w, streams, act, ctx));
  return mhc_out(block, streams, act, ctx);
}

Status run_head(const Model& model, const HeadWeights& head, const bf16* streams, Activations& act,
                const ForwardBatch& batch, OpContext& ctx) {
  if (batch.R == 0) return {};
  const ModelConfig& config = model.config;
  DSV4_TRY(ctx.ops.hc_head(ctx, {.streams = streams,
                                 .rows = batch.logit_rows,
                                 .fn = plain<float>(head.fn),
                                 .base = plain<float>(head.base),
                                 .scale = plain<float>(head.scale),
                                 .norm = plain<bf16>(head.norm),
                                 .hc_eps = static_cast<float>(config.hc_eps),
                                 .norm_eps = static_cast<float>(config.rms_norm_eps),
                                 .x = act.head_x,
                                 .R = batch.R,
                                 .hc = config.hc_mult,
                                 .D = config.hidden_size}));
  DSV4_TRY(ctx.ops.linear(ctx, {.x = act.head_x, .w = model.weights.lm_head.view(), .y = act.logits,
                                .y_dtype = DType::kF32, .T = batch.R}));
  return ctx.ops.sample(ctx, {.logits = act.logits, .rows = batch.samples, .tokens = act.tokens,
                              .R = batch.R, .V = config.vocab_size});
}

Status forward(const Model& model, Activations& act, const ForwardBatch& batch,
               std::span<const LayerCacheView> cache, OpContext& ctx) {
  const Weights& w = model.weights;
  DSV4_TRY(ctx.ops.embed(ctx, {.tokens = batch.view.tokens, .table = w.embed.view(),
                               .streams = act.streams, .T = batch.view.rows, .hc = model.config.hc_mult,
                               .D = model.config.hidden_size}));
  for (size_t i = 0; i < w.layers.size(); ++i) {
    const BlockContext block = block_context(model, model.plan.layers[i], batch, cache[i]);
    if (i == 0) DSV4_TRY(mhc_in(block, w.layers[i].hc_attn, act.streams, act, ctx));
    DSV4_TRY(sublayers(block, w.layers[i], act.streams, act, ctx));
    if (i + 1 == w.layers.size()) DSV4_TRY(mhc_out(block, act.streams, act, ctx));
    else DSV4_TRY(mhc_between(block, w.layers[i + 1].hc_attn, act.streams, act, ctx));
  }
  return run_head(model, w.head, act.streams, act, batch, ctx);
}

}  // namespace dsv4
