// OpTable: one typed function per op, generated from one list; the only thing the model calls.
// `reference` fills every leaf, fallbacks.cc composes the fused entries from leaves of the same
// table, and a backend overrides what it does better.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "dsv4/status.h"
#include "ops/args/attention.h"
#include "ops/args/linear.h"
#include "ops/args/moe.h"
#include "ops/args/residual.h"
#include "ops/args/sample.h"

namespace dsv4 {

struct OpContext;

template <class Args>
struct Op {
  using Fn = Status (*)(OpContext& ctx, const Args& args);
  Fn fn = nullptr;
  std::string_view impl;  // which implementation stands here, for `inspect --ops`

  Status operator()(OpContext& ctx, const Args& args) const { return fn(ctx, args); }
};

// X(name, Args, kind): leaf = every backend must have it; fused = has a default made of leaves.
#define DSV4_OP_LIST(X)                     \
  X(embed, EmbedArgs, leaf)                 \
  X(hc_pre, HcPreArgs, leaf)                \
  X(hc_pre_norm, HcPreNormArgs, fused)      \
  X(hc_post, HcPostArgs, leaf)              \
  X(hc_post_pre_norm, HcPostPreNormArgs, fused) \
  X(hc_head, HcHeadArgs, leaf)              \
  X(stream_add, StreamAddArgs, leaf)        \
  X(rms_norm, RmsNormArgs, leaf)            \
  X(linear, LinearArgs, leaf)               \
  X(linear_stack, LinearStackArgs, fused)   \
  X(grouped_linear, GroupedLinearArgs, leaf) \
  X(rope, RopeArgs, leaf)                   \
  X(qkv, QkvArgs, leaf)                     \
  X(compress, CompressArgs, leaf)           \
  X(index_select, IndexSelectArgs, leaf)    \
  X(attention, AttentionArgs, leaf)         \
  X(attention_parts, AttentionPartsArgs, leaf) \
  X(ring_insert, RingInsertArgs, leaf)      \
  X(attend, AttendArgs, fused)              \
  X(router, RouterArgs, leaf)               \
  X(moe, MoeArgs, leaf)                     \
  X(sample, SampleArgs, leaf)

struct OpTable {
#define DSV4_DECLARE_OP(name, Args, kind) Op<Args> name;
  DSV4_OP_LIST(DSV4_DECLARE_OP)
#undef DSV4_DECLARE_OP
};

struct OpInfo {
  std::string_view name;
  bool fused;
};
std::span<const OpInfo> op_list();

// Which implementation stands at each entry, in the order of op_list().
std::string_view op_impl(const OpTable& table, size_t index);

// Fused entries made of the table's own leaves.
void fill_fallbacks(OpTable& table);

}  // namespace dsv4
