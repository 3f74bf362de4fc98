// Attention (MODEL.md section 2).
#include "model/blocks.h"

namespace dsv4 {

Status attention_block(const BlockContext& block, const AttentionWeights& w, Activations& act,
                       OpContext& ctx) {
  const ModelConfig& config = block.config;
  const LayerPlan& layer = block.layer;
  const BatchView& batch = block.batch.view;
  const int64_t T = batch.rows, H = config.num_attention_heads, d = config.head_dim;
  const float eps = static_cast<float>(config.rms_norm_eps);

  // Every projection of x at once.
  LinearStackArgs stack{.x = act.x, .T = T, .K = config.hidden_size, .n = 0};
  auto project = [&stack](const PackedWeight& weight, void* y, DType dtype) {
    stack.w[stack.n] = weight.view();
    stack.y[stack.n] = y;
    stack.y_dtype[stack.n++] = dtype;
  };
  project(w.wq_a, act.qr, DType::kBF16);
  project(w.wkv, act.kv, DType::kBF16);
  if (layer.has_compressor()) {
    project(w.compressor.wkv, act.c, DType::kF32);
    project(w.compressor.wgate, act.s, DType::kF32);
  }
  if (layer.has_indexer()) {
    project(w.index_compressor.wkv, act.index_c, DType::kF32);
    project(w.index_compressor.wgate, act.index_s, DType::kF32);
    project(w.index_weights_proj, act.index_weights, DType::kBF16);
  }
  DSV4_TRY(ctx.ops.linear_stack(ctx, stack));

  LinearStackArgs queries{.x = act.qr, .T = T, .K = config.q_lora_rank, .norm = plain<bf16>(w.q_norm),
                          .norm_eps = eps, .n = 1, .w = {w.wq_b.view()}, .y = {act.q},
                          .y_dtype = {DType::kBF16}};
  if (layer.has_indexer()) {
    queries.w[1] = w.index_wq_b.view();
    queries.y[1] = act.index_q;
    queries.y_dtype[1] = DType::kBF16;
    queries.n = 2;
  }
  DSV4_TRY(ctx.ops.linear_stack(ctx, queries));

  AttendArgs attend{.qkv = {.q = act.q, .kv = act.kv, .kv_norm = plain<bf16>(w.kv_norm),
                            .positions = batch.positions, .rope = block.rope, .T = T, .H = H, .d = d,
                            .eps = eps},
                    .entries = {},
                    .keys = {},
                    .select = {},
                    .attention = {.batch = batch,
                                  .q = act.q,
                                  .kv = act.kv,
                                  .ring = block.cache.ring,
                                  .entries = {},
                                  .ratio = layer.ratio,
                                  .selected = nullptr,
                                  .selected_count = nullptr,
                                  .topk = config.index_topk,
                                  .sink = plain<float>(w.sink),
                                  .o = act.o,
                                  .H = H,
                                  .d = d,
                                  .window = layer.window,
                                  .r = config.qk_rope_head_dim},
                    .ring_insert = {.batch = batch, .kv = act.kv, .ring = block.cache.ring, .d = d,
                                    .r = config.qk_rope_head_dim}};
  if (layer.has_compressor()) {
    attend.entries = entry_args(block, w.compressor, act);
    attend.attention.entries = block.cache.entries;
  }
  if (layer.has_indexer()) {
    attend.keys = key_args(block, w.index_compressor, act);
    attend.select = select_args(block, act);
    attend.attention.selected = act.selected;
    attend.attention.selected_count = act.selected_count;
  }
  DSV4_TRY(ctx.ops.attend(ctx, attend));

  DSV4_TRY(ctx.ops.grouped_linear(ctx, {.x = act.o, .w = w.wo_a.view(), .y = act.o_lora, .T = T,
                                        .G = config.o_groups}));
  return ctx.ops.linear(ctx, {.x = act.o_lora, .w = w.wo_b.view(), .y = act.out,
                              .y_dtype = DType::kBF16, .T = T});
}

}  // namespace dsv4
