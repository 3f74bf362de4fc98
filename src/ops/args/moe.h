// FFN (MODEL.md section 3). T rows, D hidden, E routed experts, k per token, I expert width.
#pragma once

#include <cstdint>

#include "formats/bf16.h"
#include "ops/weight.h"

namespace dsv4 {

// Score routing: top-k of sqrt(softplus(gate x)) + bias, or hash routing: ids from a table by token
// id. Weights = score without bias / their sum * scaling.
struct RouterArgs {
  const bf16* x;    // [T, D]
  WeightView gate;  // [E, D]
  const float* bias;        // [E]; nullptr for hash layers
  const int32_t* tid2eid;   // [V, k]; nullptr for score layers
  const int32_t* tokens;    // [T]
  float scaling;
  int32_t* ids;    // [T, k]
  float* weights;  // [T, k]
  int64_t T, E, D, k;
};

// y = BF16(sum over routed experts, ascending id, of FP32(w2 h) + shared expert).
// h = BF16(silu(min(a, limit)) * clamp(u, +-limit) * routing weight); a = w1 x, u = w3 x in BF16.
struct MoeArgs {
  const bf16* x;  // [T, D]
  const int32_t* ids;    // [T, k]
  const float* weights;  // [T, k]
  WeightView w1, w3;     // [E] stacks of [I, D]
  WeightView w2;         // [E] stack of [D, I]
  WeightView shared_w1, shared_w3, shared_w2;
  float limit;
  bf16* y;  // [T, D]
  int64_t T, D, I, E, k;
  int64_t shared_I;
};

}  // namespace dsv4
