// The MTP block (MODEL.md section 5): one more SWA layer over the main model's streams and the next
// token's embedding, with the main head's weight.
#include "model/blocks.h"

namespace dsv4 {

Status forward_mtp(const Model& model, int64_t block, const bf16* streams, Activations& act,
                   const ForwardBatch& batch, const LayerCacheView& cache, OpContext& ctx) {
  const ModelConfig& config = model.config;
  const MtpWeights& w = model.weights.mtp[static_cast<size_t>(block)];
  const int64_t T = batch.view.rows, D = config.hidden_size, hc = config.hc_mult;
  const float eps = static_cast<float>(config.rms_norm_eps);

  DSV4_TRY(ctx.ops.embed(ctx, {.tokens = batch.view.tokens, .table = model.weights.embed.view(),
                               .streams = act.x, .T = T, .hc = 1, .D = D}));
  DSV4_TRY(ctx.ops.rms_norm(ctx, {.x = act.x, .w = plain<bf16>(w.enorm), .y = act.x, .T = T, .N = D,
                                  .eps = eps}));
  DSV4_TRY(ctx.ops.linear(ctx, {.x = act.x, .w = w.e_proj.view(), .y = act.out,
                                .y_dtype = DType::kBF16, .T = T}));
  DSV4_TRY(ctx.ops.rms_norm(ctx, {.x = streams, .w = plain<bf16>(w.hnorm), .y = act.mtp_h,
                                  .T = T * hc, .N = D, .eps = eps}));
  DSV4_TRY(ctx.ops.linear(ctx, {.x = act.mtp_h, .w = w.h_proj.view(), .y = act.mtp_streams,
                                .y_dtype = DType::kBF16, .T = T * hc}));
  DSV4_TRY(ctx.ops.stream_add(ctx, {.e = act.out, .h = act.mtp_streams, .streams = act.mtp_streams,
                                    .T = T, .hc = hc, .D = D}));
  DSV4_TRY(run_layer(model, w.layer, model.plan.mtp[static_cast<size_t>(block)], act.mtp_streams, act,
                     batch, cache, ctx));
  return run_head(model, w.head, act.mtp_streams, act, batch, ctx);
}

}  // namespace dsv4
