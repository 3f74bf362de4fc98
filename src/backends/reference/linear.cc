// Linear maps and RMSNorm.
#include <cmath>

#include "backends/reference/kernels.h"
#include "backends/reference/matrix.h"
#include "ops/check.h"

namespace dsv4::reference {

Status rms_norm(OpContext& ctx, const RmsNormArgs& a) {
  (void)ctx;
  for (int64_t t = 0; t < a.T; ++t) {
    const bf16* x = a.x + t * a.N;
    double sum = 0.0;
    for (int64_t i = 0; i < a.N; ++i) {
      const double v = static_cast<double>(to_float(x[i]));
      sum += v * v;
    }
    const float mean = static_cast<float>(sum / static_cast<double>(a.N));
    const float r = 1.0f / std::sqrt(mean + a.eps);
    for (int64_t i = 0; i < a.N; ++i) {
      a.y[t * a.N + i] = to_bf16(to_float(x[i]) * r * to_float(a.w[i]));
    }
  }
  return {};
}

Status linear(OpContext& ctx, const LinearArgs& a) {
  DSV4_TRY(check_dtype("linear", "y", a.y_dtype, {DType::kBF16, DType::kF32}));
  const Matrix& w = matrix(a.w);
  const int64_t N = w.rows, K = w.cols;
  Workspace::Scope scratch(ctx.workspace);
  DSV4_ASSIGN(float* x, scratch.take<float>(a.T * K));
  DSV4_ASSIGN(float* row, scratch.take<float>(K));
  linear_input(w.format, a.x, a.T, K, x);
  if (a.y_dtype == DType::kF32) {
    multiply(w, 0, N, x, K, a.T, static_cast<float*>(a.y), N, row);
    return {};
  }
  DSV4_ASSIGN(float* y, scratch.take<float>(a.T * N));
  multiply(w, 0, N, x, K, a.T, y, N, row);
  bf16* out = static_cast<bf16*>(a.y);
  for (int64_t i = 0; i < a.T * N; ++i) out[i] = to_bf16(y[i]);
  return {};
}

Status grouped_linear(OpContext& ctx, const GroupedLinearArgs& a) {
  const Matrix& w = matrix(a.w);
  const int64_t R = w.rows / a.G, K = w.cols, N = w.rows;
  Workspace::Scope scratch(ctx.workspace);
  DSV4_ASSIGN(float* x, scratch.take<float>(a.T * a.G * K));
  DSV4_ASSIGN(float* y, scratch.take<float>(a.T * N));
  DSV4_ASSIGN(float* row, scratch.take<float>(K));
  for (int64_t i = 0; i < a.T * a.G * K; ++i) x[i] = to_float(a.x[i]);
  for (int64_t g = 0; g < a.G; ++g) {
    for (int64_t r = 0; r < R; ++r) {
      w.row(g * R + r, row);
      // The weight itself is BF16 here: dequantised and rounded, exact unless a scale is extreme.
      for (int64_t k = 0; k < K; ++k) row[k] = round_bf16(row[k]);
      for (int64_t t = 0; t < a.T; ++t) {
        y[t * N + g * R + r] = static_cast<float>(dot(x + (t * a.G + g) * K, row, K));
      }
    }
  }
  for (int64_t i = 0; i < a.T * N; ++i) a.y[i] = to_bf16(y[i]);
  return {};
}

}  // namespace dsv4::reference
