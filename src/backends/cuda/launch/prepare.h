// What attention needs before it can start, for the launchers of the ops that are made of it.
#pragma once

#include <string_view>

#include "ops/context.h"

namespace dsv4::cuda {

// Parts of `attend`, in one launch; a part whose pointers are null is left out.
struct Prepare {
  QkvArgs qkv{};                // q
  RingInsertArgs ring_insert{};  // ring.data: the finished kv rows enter the ring as well
  CompressArgs compress[2]{};   // c
  IndexSelectArgs index{};      // q: RoPE, Hadamard, idx4
  // Rows enter the tails, too. For batches of one row per sequence, where no other row can still need
  // their place.
  bool tails = false;
};
Status prepare(OpContext& ctx, const Prepare& p);

// index_select for queries that prepare() has made.
Status select_entries(OpContext& ctx, const IndexSelectArgs& a);

// The ops of this backend take such rows.
Status check_cached_row(std::string_view op, KvFormat format, int64_t d, int64_t r);

// Attention, then the inverse rotation of its result (rope.freqs == nullptr: none).
Status attention_out(OpContext& ctx, const AttentionArgs& a, const RopeView& rope);

}  // namespace dsv4::cuda
