// The ops that this backend overrides, one function per entry of the op list.
#pragma once

#include "ops/context.h"

namespace dsv4::cpu {

Status embed(OpContext& ctx, const EmbedArgs& a);
Status linear(OpContext& ctx, const LinearArgs& a);
Status linear_stack(OpContext& ctx, const LinearStackArgs& a);
Status grouped_linear(OpContext& ctx, const GroupedLinearArgs& a);
Status router(OpContext& ctx, const RouterArgs& a);
Status moe(OpContext& ctx, const MoeArgs& a);

}  // namespace dsv4::cpu
