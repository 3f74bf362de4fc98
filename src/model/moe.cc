// FFN: router, routed experts, shared expert (MODEL.md section 3).
#include "model/blocks.h"

namespace dsv4 {

Status ffn_block(const BlockContext& block, const FfnWeights& w, Activations& act, OpContext& ctx) {
  const ModelConfig& config = block.config;
  const BatchView& batch = block.batch.view;
  const bool hash = block.layer.router == RouterKind::kHash;
  DSV4_TRY(ctx.ops.router(ctx, {.x = act.x,
                                .gate = w.gate.view(),
                                .bias = hash ? nullptr : plain<float>(w.bias),
                                .tid2eid = hash ? plain<int32_t>(w.tid2eid) : nullptr,
                                .tokens = batch.tokens,
                                .scaling = static_cast<float>(config.routed_scaling_factor),
                                .ids = act.expert_ids,
                                .weights = act.expert_weights,
                                .T = batch.rows,
                                .E = config.n_routed_experts,
                                .D = config.hidden_size,
                                .k = config.num_experts_per_tok}));
  return ctx.ops.moe(ctx, {.x = act.x,
                           .ids = act.expert_ids,
                           .weights = act.expert_weights,
                           .w1 = w.w1.view(),
                           .w3 = w.w3.view(),
                           .w2 = w.w2.view(),
                           .shared_w1 = w.shared_w1.view(),
                           .shared_w3 = w.shared_w3.view(),
                           .shared_w2 = w.shared_w2.view(),
                           .limit = static_cast<float>(config.swiglu_limit),
                           .y = act.out,
                           .T = batch.rows,
                           .D = config.hidden_size,
                           .I = config.moe_intermediate_size,
                           .E = config.n_routed_experts,
                           .k = config.num_experts_per_tok,
                           .shared_I = w.shared_w1.view().rows});
}

}  // namespace dsv4
