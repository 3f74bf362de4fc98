// Attention (MODEL.md section 2). T rows, H query heads, d head dim, r = RoPE dims (the last r of d),
// W window, m compression ratio. Keys and values are the same vectors, one head for all queries.
#pragma once

#include <cstdint>

#include "formats/bf16.h"
#include "ops/cache_view.h"
#include "ops/weight.h"

namespace dsv4 {

// f_i of MODEL.md section 0, YaRN applied where the layer has it. The angle is FP32(position * f_i).
struct RopeView {
  const float* freqs;  // [r/2]
  int64_t r;
};

// In place on the last r dims of every head; inverse uses the conjugate.
struct RopeArgs {
  bf16* x;  // [T, H, d]
  const int32_t* positions;  // [T]
  RopeView rope;
  int64_t T, H, d;
  bool inverse;
};

// Fused: q <- RoPE(headnorm(q)); kv <- RoPE(RMSNorm(kv)), then kv8 on dims 0..d-r-1.
struct QkvArgs {
  bf16* q;                   // [T, H, d] in place
  bf16* kv;                  // [T, d] in place
  const bf16* kv_norm;       // [d]
  const int32_t* positions;  // [T]
  RopeView rope;
  int64_t T, H, d;
  float eps;
};

// Pools raw rows into compressed entries and writes those that this batch finishes: entry i when its
// last token (i+1)*m - 1 is in the batch. Rows before the batch come from the tail, which is brought
// up to date afterwards. Entry i takes RoPE position i*m.
struct CompressArgs {
  BatchView batch;
  const float* c;     // [T, columns] wkv x
  const float* s;     // [T, columns] wgate x, ape not yet added
  const float* ape;   // [m, columns]
  const bf16* norm;   // [dim]
  CompressorSpec spec;
  bool index_key;  // true: Hadamard and idx4 on all dims; false: kv8 on dims 0..dim-r-1
  RopeView rope;
  float eps;
  TailView tail;
  PagedView out;
};

// Indexer: best min(topk, visible) entries per row. Ties take the lowest index.
struct IndexSelectArgs {
  BatchView batch;
  bf16* q;              // [T, heads, e] raw wq_b output; RoPE, Hadamard, idx4 are applied in place
  const bf16* weights;  // [T, heads] BF16(weights_proj x), not yet scaled
  PagedView keys;       // rows of e values
  RopeView rope;
  int64_t heads, e, ratio, topk;
  int32_t* selected;        // [T, topk] ascending entry indices, then -1
  int32_t* selected_count;  // [T]
};

// Window rows at positions >= the sequence's first row in this batch come from kv, older ones from
// the ring. Compressed entries: the selected ones, or (selected == nullptr) all visible.
struct AttentionArgs {
  BatchView batch;
  const bf16* q;   // [T, H, d]
  const bf16* kv;  // [T, d] rows of this batch, as Qkv left them
  RingView ring;
  PagedView entries;        // data == nullptr for SWA layers
  int64_t ratio;            // 0 for SWA
  const int32_t* selected;  // [T, topk] or nullptr
  const int32_t* selected_count;  // [T] or nullptr
  int64_t topk;
  const float* sink;  // [H]
  bf16* o;            // [T, H, d]
  int64_t H, d, window;
  int64_t r;  // RoPE dims, for rows stored as kFp8Rope
};

// Attention, and what joins a row's keys with others of the same query that somebody else has: another device, a prefix that many
// share. Over the scores s_i = q k_i d^-1/2 of the row's keys, without the sink:
//   top = max_i s_i,  sums = sum_i BF16(exp(s_i - top)) v_i,  lse = log sum_i exp(s_i).
// Parts j of all keys make o = sum_j e^(top_j - m) sums_j / (e^(sink - m) + sum_j e^(lse_j - m)), m = max_j top_j.
struct AttentionPartsArgs {
  AttentionArgs attention;
  float* sums;  // [T, H, d] not normalised
  float* top;   // [T, H]
  float* lse;   // [T, H]
};

// After attention: the batch's rows enter the ring (the last ring.rows of each sequence).
struct RingInsertArgs {
  BatchView batch;
  const bf16* kv;  // [T, d]
  RingView ring;
  int64_t d;
  int64_t r;
};

// y[t, g*R + n] = sum_k o[t, g, k] w[g*R + n, k]; no act8. K = H*d/G.
struct GroupedLinearArgs {
  const bf16* x;  // [T, G, K]
  WeightView w;   // [G*R, K], dequantised to BF16 values
  bf16* y;        // [T, G*R]
  int64_t T, G;
};

// Fused: all between an attention block's projections and its output projection. Qkv; Compress of
// entries (layers with a ratio); Compress of keys and IndexSelect (where attention.selected is given);
// Attention; RingInsert; inverse RoPE of o in place.
struct AttendArgs {
  QkvArgs qkv;
  CompressArgs entries;    // attention.ratio > 0
  CompressArgs keys;       // attention.selected != nullptr
  IndexSelectArgs select;  // likewise
  AttentionArgs attention;
  RingInsertArgs ring_insert;
};

}  // namespace dsv4
