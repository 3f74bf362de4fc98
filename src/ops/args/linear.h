// Linear maps and RMSNorm (MODEL.md section 0). A weight of a quantised format takes act8 inputs, a
// BF16 weight takes the BF16 input as it is; sums are FP32 at least.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "formats/bf16.h"
#include "ops/weight.h"

namespace dsv4 {

// y[t, n] = sum_k x[t, k] w[n, k], rounded to y_dtype once.
struct LinearArgs {
  const bf16* x;  // [T, K]
  WeightView w;   // [N, K]
  void* y;        // [T, N] BF16 or F32
  DType y_dtype;
  int64_t T;
};

inline constexpr int kMaxStackedLinears = 8;

// Fused: several linears over one input, e.g. every projection of an attention block's x. With `norm`
// the input is BF16(RMSNorm(x)); x itself stays as it is.
struct LinearStackArgs {
  const bf16* x;  // [T, K]
  int64_t T, K;
  const bf16* norm = nullptr;  // [K], or nullptr: none
  float norm_eps = 0.0f;
  int32_t n;
  WeightView w[kMaxStackedLinears];
  void* y[kMaxStackedLinears];
  DType y_dtype[kMaxStackedLinears];
};

// y = BF16(x * rsqrt(mean(x^2) + eps) * w); y may be x.
struct RmsNormArgs {
  const bf16* x;  // [T, N]
  const bf16* w;  // [N]
  bf16* y;        // [T, N]
  int64_t T, N;
  float eps;
};

}  // namespace dsv4
