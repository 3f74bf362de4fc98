#include "backends/reference/matrix.h"

#include <algorithm>

#include "formats/quantise.h"

namespace dsv4::reference {

double dot(const float* a, const float* b, int64_t n) {
  constexpr int64_t kLanes = 8;
  double lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      lane[l] += static_cast<double>(a[i + l]) * static_cast<double>(b[i + l]);
    }
  }
  for (int64_t l = 0; i < n; ++i, ++l) lane[l] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

void multiply(const Matrix& w, int64_t row_begin, int64_t rows, const float* x, int64_t x_stride,
              int64_t T, float* y, int64_t y_stride, float* row) {
  for (int64_t r = 0; r < rows; ++r) {
    w.row(row_begin + r, row);
    for (int64_t t = 0; t < T; ++t) {
      y[t * y_stride + r] = static_cast<float>(dot(x + t * x_stride, row, w.cols));
    }
  }
}

void linear_input(WeightFormat format, const bf16* x, int64_t T, int64_t K, float* out) {
  if (!format_info(format).quantised_input) {
    for (int64_t i = 0; i < T * K; ++i) out[i] = to_float(x[i]);
    return;
  }
  uint8_t codes[kAct8Group];
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t k = 0; k < K; k += kAct8Group) {
      const int n = static_cast<int>(std::min<int64_t>(kAct8Group, K - k));
      const float scale = ue8m0_to_float(act8_quantise(x + t * K + k, n, codes));
      for (int i = 0; i < n; ++i) out[t * K + k + i] = e4m3_to_float(codes[i]) * scale;
    }
  }
}

}  // namespace dsv4::reference
