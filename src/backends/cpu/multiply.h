// Linear maps inside a parallel region: filling panels, and multiplying a range of tiles.
#pragma once

#include <algorithm>
#include <cstring>

#include "backends/cpu/core.h"

namespace dsv4::cpu {

inline bool takes_act8(const Tiles& w) { return format_info(w.format).quantised_input; }

// Floats of one worker's scratch: decoded weights, two results of a piece, one chunk of a panel's rows.
inline constexpr int64_t kPieceFloats = kPieceRows * kPieceTiles * kTileRows;
inline constexpr int64_t kChunk = 512;  // values of K that one item of panel filling covers
inline constexpr int64_t kWorkerFloats = kDecodeFloats + 2 * kPieceFloats + kPanelRows * kChunk;

struct WorkerScratch {
  float *decoded, *out, *out2, *rows;
  WorkerScratch(float* base, int worker)
      : decoded(base + worker * kWorkerFloats), out(decoded + kDecodeFloats),
        out2(out + kPieceFloats), rows(out2 + kPieceFloats) {}
};

inline Result<float*> take_worker_scratch(Workspace::Scope& scope, const ThreadPool& pool) {
  return scope.take<float>(pool.threads() * kWorkerFloats);
}

// n rows of activations, as panels of units (kernels.h). `row(i)` gives the i-th row's BF16 values.
struct Panels {
  const LinearKernels* kernels = nullptr;
  int64_t rows = 0, K = 0;
  bool act8 = false;
  float* data = nullptr;  // [panel][row_units][rows of the panel]

  int64_t padded() const { return ceil_div(K, kTileK) * kTileK; }
  int64_t row_units() const { return padded() / kernels->unit_values; }
  int64_t units() const { return rows * row_units(); }
  // Row r, which begins a panel.
  const float* at(int64_t r) const { return data + r * row_units(); }
  // Filling is cut into items that any worker may do.
  int64_t chunks() const { return ceil_div(padded(), kChunk); }
  int64_t items() const { return ceil_div(rows, kPanelRows) * chunks(); }

  template <class Row>
  void fill(int64_t item, const Row& row, float* scratch) const {
    const int64_t first = item / chunks() * kPanelRows, k = item % chunks() * kChunk;
    const int64_t n = std::min(kPanelRows, rows - first), values = std::min(kChunk, K - k);
    const int64_t width = std::min(kChunk, padded() - k) / kernels->unit_values;
    float* panel = data + first * row_units() + k / kernels->unit_values * n;
    for (int64_t r = 0; r < n; ++r) {
      float* to = n == 1 ? panel : scratch + r * kChunk;
      (act8 ? kernels->expand_act8 : kernels->expand_bf16)(row(first + r) + k, values, to);
    }
    if (n > 1) kernels->transpose(scratch, kChunk, n, width, panel);
  }
};

// Tiles of a piece at least, where `rows` rows are multiplied: few rows are soon done.
constexpr int64_t piece_step(int64_t rows) { return rows <= kPanelRows ? kPieceTiles / 2 : kPieceTiles; }

// Calls sink(first_row, rows, first_tile, tiles, result) for pieces that cover all rows of x and
// `range` of w's tiles; result is [rows][tiles * 32].
template <class Sink>
void multiply_range(const LinearKernels& kernels, const Tiles& w, IndexRange range, const Panels& x,
                    float* decoded, float* out, const Sink& sink) {
  for (int64_t t = range.begin; t < range.end; t += kPieceTiles) {
    const int64_t count = std::min(kPieceTiles, range.end - t);
    for (int64_t row = 0; row < x.rows; row += kPieceRows) {
      const int64_t n = std::min(kPieceRows, x.rows - row);
      kernels.multiply(w, t, count, x.at(row), n, decoded, out);
      sink(row, n, t, count, out);
    }
  }
}

// Where a linear's result goes: columns [column, column + w.rows) of y [T, stride].
struct Output {
  void* y = nullptr;
  DType dtype = DType::kBF16;
  int64_t stride = 0, column = 0;
};

inline void store_result(const LinearKernels& kernels, const Output& to, const Tiles& w, int64_t row,
                         int64_t n, int64_t tile, int64_t count, const float* result) {
  const int64_t columns = std::min(count * kTileRows, w.rows - tile * kTileRows);
  for (int64_t r = 0; r < n; ++r) {
    const float* from = result + r * count * kTileRows;
    const int64_t at = (row + r) * to.stride + to.column + tile * kTileRows;
    if (to.dtype == DType::kF32) {
      memcpy(static_cast<float*>(to.y) + at, from, static_cast<size_t>(columns) * sizeof(float));
    } else {
      kernels.round_bf16(from, columns, static_cast<bf16*>(to.y) + at);
    }
  }
}

}  // namespace dsv4::cpu
