// Fused entries composed of leaves. They go through ctx.ops, so a backend that overrides a leaf
// speeds up every fused entry made of it, and wrappers see the leaves.
#include "ops/context.h"

namespace dsv4 {
namespace {

constexpr std::string_view kName = "fallback";

Status hc_pre_norm(OpContext& ctx, const HcPreNormArgs& a) {
  DSV4_TRY(ctx.ops.hc_pre(ctx, a.pre));
  return ctx.ops.rms_norm(ctx, {.x = a.pre.x, .w = a.norm, .y = a.pre.x, .T = a.pre.T, .N = a.pre.D,
                                .eps = a.pre.norm_eps});
}

Status hc_post_pre_norm(OpContext& ctx, const HcPostPreNormArgs& a) {
  DSV4_TRY(ctx.ops.hc_post(ctx, a.post));
  return ctx.ops.hc_pre_norm(ctx, a.next);
}

Status linear_stack(OpContext& ctx, const LinearStackArgs& a) {
  Workspace::Scope scratch(ctx.workspace);
  const bf16* x = a.x;
  if (a.norm) {
    DSV4_ASSIGN(bf16* normed, scratch.take<bf16>(a.T * a.K));
    DSV4_TRY(ctx.ops.rms_norm(ctx, {.x = a.x, .w = a.norm, .y = normed, .T = a.T, .N = a.K, .eps = a.norm_eps}));
    x = normed;
  }
  for (int32_t i = 0; i < a.n; ++i) {
    DSV4_TRY(ctx.ops.linear(ctx, {.x = x, .w = a.w[i], .y = a.y[i], .y_dtype = a.y_dtype[i], .T = a.T}));
  }
  return {};
}

Status attend(OpContext& ctx, const AttendArgs& a) {
  DSV4_TRY(ctx.ops.qkv(ctx, a.qkv));
  if (a.attention.ratio > 0) DSV4_TRY(ctx.ops.compress(ctx, a.entries));
  if (a.attention.selected) {
    DSV4_TRY(ctx.ops.compress(ctx, a.keys));
    DSV4_TRY(ctx.ops.index_select(ctx, a.select));
  }
  DSV4_TRY(ctx.ops.attention(ctx, a.attention));
  DSV4_TRY(ctx.ops.ring_insert(ctx, a.ring_insert));
  return ctx.ops.rope(ctx, {.x = a.attention.o, .positions = a.qkv.positions, .rope = a.qkv.rope, .T = a.qkv.T,
                            .H = a.qkv.H, .d = a.qkv.d, .inverse = true});
}

}  // namespace

void fill_fallbacks(OpTable& table) {
  table.hc_pre_norm = {hc_pre_norm, kName};
  table.hc_post_pre_norm = {hc_post_pre_norm, kName};
  table.linear_stack = {linear_stack, kName};
  table.attend = {attend, kName};
}

}  // namespace dsv4
