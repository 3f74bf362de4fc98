// Weights of the reference backend keep the published bytes; rows are dequantised as they are used.
#pragma once

#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "formats/bf16.h"
#include "ops/weight.h"

namespace dsv4::reference {

// One published matrix [rows, cols].
struct Matrix {
  WeightFormat format = WeightFormat::kBf16;
  const void* weight = nullptr;
  const void* scale = nullptr;
  float global_scale = 1.0f;
  int64_t rows = 0, cols = 0;

  void row(int64_t r, float* out) const {
    dequantise_row(format, weight, scale, global_scale, rows, cols, r, out);
  }
};

struct Weight : PackedWeight::Impl {
  std::vector<Matrix> matrices;
  Buffer owned;  // vectors are copied to aligned memory; larger roles borrow the caller's bytes
};

inline const Matrix& matrix(const WeightView& view, int64_t index = 0) {
  return static_cast<const Weight*>(view.impl)->matrices[static_cast<size_t>(index)];
}

// sum_i a[i] * b[i] in FP64, in an order that depends on n alone.
double dot(const float* a, const float* b, int64_t n);

// y[t, r] = sum_k x[t, k] w[row_begin + r, k] for r < rows; x has stride x_stride, y stride y_stride.
// `row` is scratch of w.cols floats.
void multiply(const Matrix& w, int64_t row_begin, int64_t rows, const float* x, int64_t x_stride,
              int64_t T, float* y, int64_t y_stride, float* row);

// The input a linear with weights of this format sees: act8 for quantised weights, else x itself.
// x, out: [T, K]; out holds the dequantised values.
void linear_input(WeightFormat format, const bf16* x, int64_t T, int64_t K, float* out);

}  // namespace dsv4::reference
