// Residual streams: embedding in, mHC around every sublayer (MODEL.md section 1), head out (4).
// T rows, D hidden size, hc streams, V vocabulary.
#pragma once

#include <cstdint>

#include "formats/bf16.h"
#include "ops/weight.h"

namespace dsv4 {

// streams[t, j, :] = table[tokens[t], :] for every j.
struct EmbedArgs {
  const int32_t* tokens;  // [T]
  WeightView table;       // [V, D] BF16
  bf16* streams;          // [T, hc, D]
  int64_t T, hc, D;
};

// One mHC site. mix = (2 + hc) * hc rows of fn: pre, post, combination.
struct HcWeights {
  const float* fn;     // [mix, hc * D]
  const float* base;   // [mix]
  const float* scale;  // [3]
  int32_t sinkhorn_iters;
  float hc_eps;
};

// x = BF16(sum_j pre_j X_j); post and comb are kept for HcPost.
struct HcPreArgs {
  const bf16* streams;  // [T, hc, D]
  HcWeights mhc;
  float norm_eps;
  bf16* x;      // [T, D]
  float* post;  // [T, hc]
  float* comb;  // [T, hc, hc]
  int64_t T, hc, D;
};

// Fused: HcPre, then x <- RMSNorm(x, norm).
struct HcPreNormArgs {
  HcPreArgs pre;
  const bf16* norm;  // [D]
};

// X'_l = BF16(post_l * out + sum_j comb[j][l] X_j), in place.
struct HcPostArgs {
  bf16* streams;      // [T, hc, D]
  const bf16* out;    // [T, D]
  const float* post;  // [T, hc]
  const float* comb;  // [T, hc, hc]
  int64_t T, hc, D;
};

// Fused: HcPost of one sublayer, then HcPreNorm of the next on the streams that it leaves. The next
// site's post and comb may lie where the first one's are.
struct HcPostPreNormArgs {
  HcPostArgs post;
  HcPreNormArgs next;
};

// x[r] = RMSNorm(BF16(sum_j pre_j X_j)) of row rows[r]: hc_head and the final norm.
struct HcHeadArgs {
  const bf16* streams;  // [T, hc, D]
  const int32_t* rows;  // [R]
  const float* fn;      // [hc, hc * D]
  const float* base;    // [hc]
  const float* scale;   // [1]
  const bf16* norm;     // [D]
  float hc_eps, norm_eps;
  bf16* x;  // [R, D]
  int64_t R, hc, D;
};

// streams[t, j, :] = BF16(e[t, :] + h[t, j, :]): the MTP block's input.
struct StreamAddArgs {
  const bf16* e;  // [T, D]
  const bf16* h;  // [T, hc, D]
  bf16* streams;  // [T, hc, D]
  int64_t T, hc, D;
};

}  // namespace dsv4
