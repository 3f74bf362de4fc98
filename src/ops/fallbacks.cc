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

Status linear_stack(OpContext& ctx, const LinearStackArgs& a) {
  for (int32_t i = 0; i < a.n; ++i) {
    DSV4_TRY(ctx.ops.linear(ctx, {.x = a.x, .w = a.w[i], .y = a.y[i], .y_dtype = a.y_dtype[i], .T = a.T}));
  }
  return {};
}

Status out_project(OpContext& ctx, const OutProjectArgs& a) {
  DSV4_TRY(ctx.ops.rope(ctx, a.rope));
  return ctx.ops.grouped_linear(ctx, a.linear);
}

}  // namespace

void fill_fallbacks(OpTable& table) {
  table.hc_pre_norm = {hc_pre_norm, kName};
  table.linear_stack = {linear_stack, kName};
  table.out_project = {out_project, kName};
}

}  // namespace dsv4
