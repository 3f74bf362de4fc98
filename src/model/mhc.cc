// Residual streams (MODEL.md section 1).
#include "model/blocks.h"

namespace dsv4 {
namespace {

HcPreNormArgs pre_args(const BlockContext& block, const HcSiteWeights& w, const bf16* streams,
                       const Activations& act) {
  const ModelConfig& c = block.config;
  const HcWeights mhc{.fn = plain<float>(w.fn),
                      .base = plain<float>(w.base),
                      .scale = plain<float>(w.scale),
                      .sinkhorn_iters = static_cast<int32_t>(c.hc_sinkhorn_iters),
                      .hc_eps = static_cast<float>(c.hc_eps)};
  return {.pre = {.streams = streams,
                  .mhc = mhc,
                  .norm_eps = static_cast<float>(c.rms_norm_eps),
                  .x = act.x,
                  .post = act.post,
                  .comb = act.comb,
                  .T = block.batch.view.rows,
                  .hc = c.hc_mult,
                  .D = c.hidden_size},
          .norm = plain<bf16>(w.norm)};
}

HcPostArgs post_args(const BlockContext& block, bf16* streams, const Activations& act) {
  return {.streams = streams,
          .out = act.out,
          .post = act.post,
          .comb = act.comb,
          .T = block.batch.view.rows,
          .hc = block.config.hc_mult,
          .D = block.config.hidden_size};
}

}  // namespace

Status mhc_in(const BlockContext& block, const HcSiteWeights& w, const bf16* streams,
              Activations& act, OpContext& ctx) {
  return ctx.ops.hc_pre_norm(ctx, pre_args(block, w, streams, act));
}

Status mhc_out(const BlockContext& block, bf16* streams, Activations& act, OpContext& ctx) {
  return ctx.ops.hc_post(ctx, post_args(block, streams, act));
}

Status mhc_between(const BlockContext& block, const HcSiteWeights& next, bf16* streams, Activations& act,
                   OpContext& ctx) {
  return ctx.ops.hc_post_pre_norm(
      ctx, {.post = post_args(block, streams, act), .next = pre_args(block, next, streams, act)});
}

}  // namespace dsv4
