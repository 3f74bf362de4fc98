// The ops that this backend overrides, one function per entry of the op list.
#pragma once

#include "ops/context.h"

namespace dsv4::cpu {

Status embed(OpContext& ctx, const EmbedArgs& a);
Status hc_pre(OpContext& ctx, const HcPreArgs& a);
Status hc_pre_norm(OpContext& ctx, const HcPreNormArgs& a);
Status hc_post(OpContext& ctx, const HcPostArgs& a);
Status hc_head(OpContext& ctx, const HcHeadArgs& a);

Status rms_norm(OpContext& ctx, const RmsNormArgs& a);
Status linear(OpContext& ctx, const LinearArgs& a);
Status linear_stack(OpContext& ctx, const LinearStackArgs& a);
Status grouped_linear(OpContext& ctx, const GroupedLinearArgs& a);

Status rope(OpContext& ctx, const RopeArgs& a);
Status qkv(OpContext& ctx, const QkvArgs& a);
Status compress(OpContext& ctx, const CompressArgs& a);
Status index_select(OpContext& ctx, const IndexSelectArgs& a);
Status attention(OpContext& ctx, const AttentionArgs& a);
Status attention_parts(OpContext& ctx, const AttentionPartsArgs& a);

Status router(OpContext& ctx, const RouterArgs& a);
Status moe(OpContext& ctx, const MoeArgs& a);

}  // namespace dsv4::cpu
