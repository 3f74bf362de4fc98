// Linear maps inside a parallel region: filling panels, and multiplying a range of tiles.
#pragma once

#include <algorithm>

#include "backends/cpu/core.h"

namespace dsv4::cpu {

inline bool takes_act8(const Tiles& w) { return format_info(w.format).quantised_input; }

// Floats of one worker's scratch: that of `multiply`, two results of a piece, one chunk of a panel's rows.
inline constexpr int64_t kPieceFloats = kPieceRows * kPieceTiles * kTileRows;
inline constexpr int64_t kChunkBlocks = 4;  // of a row that one item of panel filling covers
inline constexpr int64_t kWorkerFloats = kMultiplyFloats + 2 * kPieceFloats + kFewRows * kChunkBlocks * kMaxBlockUnits;

struct WorkerScratch {
  float *multiply, *out, *out2, *rows;
  WorkerScratch(float* base, int worker)
      : multiply(base + worker * kWorkerFloats), out(multiply + kMultiplyFloats),
        out2(out + kPieceFloats), rows(out2 + kPieceFloats) {}
};

inline Result<float*> take_worker_scratch(Workspace::Scope& scope, const ThreadPool& pool) {
  return scope.take<float>(pool.threads() * kWorkerFloats);
}

// Values that are rounded at once, while as many of the next panel's come from memory: more would wait for each other.
constexpr int64_t kFillStep = 512;

// n rows of activations, as panels of units (kernels.h). `row(i)` gives the i-th row's BF16 values.
struct Panels {
  const LinearKernels* kernels = nullptr;
  int64_t rows = 0, K = 0;
  bool act8 = false;
  float* data = nullptr;  // [piece][its panels]

  int64_t padded() const { return ceil_div(K, kTileK) * kTileK; }
  int64_t row_units() const { return padded() / kernels->unit_values; }
  int64_t units() const { return rows * row_units(); }
  // Row r, which begins a piece.
  const float* at(int64_t r) const { return data + r * row_units(); }
  int64_t piece_rows(int64_t piece) const { return std::min(kPieceRows, rows - piece * kPieceRows); }
  PanelCut cut() const { return kernels->panels; }
  // Filling is cut into items that any worker may do.
  int64_t chunk_units() const { return kChunkBlocks * cut().block; }
  int64_t chunks() const { return ceil_div(row_units(), chunk_units()); }
  int64_t items() const {
    const int64_t pieces = ceil_div(rows, kPieceRows), whole = cut().count(kPieceRows);
    return pieces == 0 ? 0 : ((pieces - 1) * whole + cut().count(piece_rows(pieces - 1))) * chunks();
  }

  template <class Row>
  void fill(int64_t item, const Row& row, float* scratch) const {
    const int64_t panel = item / chunks(), whole = cut().count(kPieceRows), piece = panel / whole, p = panel % whole;
    const int64_t n = piece_rows(piece), begin = cut().begin(n, p), count = cut().begin(n, p + 1) - begin;
    const int64_t stride = chunk_units(), unit = item % chunks() * stride, width = std::min(stride, row_units() - unit);
    const int64_t k = unit * kernels->unit_values, values = std::min(width * kernels->unit_values, K - k);
    float* to = data + piece * kPieceRows * row_units();
    for (int64_t r = 0; r < count; ++r) {
      const int64_t t = piece * kPieceRows + begin + r;
      const bf16 *from = row(t) + k, *next = t + cut().most < rows ? row(t + cut().most) + k : nullptr;
      float* units = n == 1 ? to + unit : scratch + r * stride;
      for (int64_t done = 0; done < values; done += kFillStep) {
        const int64_t here = std::min(kFillStep, values - done);
        for (int64_t i = 0; next && i < here; i += 32) __builtin_prefetch(next + done + i);
        (act8 ? kernels->expand_act8 : kernels->expand_bf16)(from + done, here, units + done / kernels->unit_values);
      }
    }
    if (n == 1) return;
    const int64_t block = cut().block;
    for (int64_t done = 0; done < width; done += block) {
      kernels->transpose(scratch + done, stride, count, std::min(block, width - done),
                         to + cut().at(n, row_units(), begin, (unit + done) / block));
    }
  }
};

// Tiles of a piece at least, where `rows` rows are multiplied: few rows are soon done.
constexpr int64_t piece_step(int64_t rows) { return rows <= kFewRows ? kPieceTiles / 2 : 1; }

// Parts into which the rows of a tile may be cut: each decodes the tile again, so not too small.
constexpr int64_t row_parts(int64_t rows) { return std::clamp<int64_t>(rows / 64, 1, 4); }

// Calls f(first_row, rows, first_tile, tiles) for pieces that cover all rows of x and `range` of tiles.
template <class F>
void for_pieces(IndexRange range, const Panels& x, const F& f) {
  for (int64_t t = range.begin; t < range.end; t += kPieceTiles) {
    for (int64_t row = 0; row < x.rows; row += kPieceRows) {
      f(row, std::min(kPieceRows, x.rows - row), t, std::min(kPieceTiles, range.end - t));
    }
  }
}

// The same with w's tiles multiplied: sink(first_row, rows, first_tile, tiles, result), result [rows][tiles * 32].
template <class Sink>
void multiply_range(const LinearKernels& kernels, const Tiles& w, IndexRange range, const Panels& x,
                    float* scratch, float* out, const Sink& sink) {
  for_pieces(range, x, [&](int64_t row, int64_t n, int64_t tile, int64_t tiles) {
    const int64_t columns = tiles * kTileRows;
    kernels.multiply(w, tile, tiles, whole_piece(x.at(row), n, x.cut()), scratch, {.y = out, .stride = columns, .columns = columns});
    sink(row, n, tile, tiles, out);
  });
}

// Where a linear's result goes: columns [column, column + w.rows) of y [T, stride].
struct Output {
  void* y = nullptr;
  DType dtype = DType::kBF16;
  int64_t stride = 0, column = 0;
};

// For those panels of every piece that are in `part` of `parts`.
inline void multiply_into(const LinearKernels& kernels, const Tiles& w, IndexRange range, const Panels& x,
                          IndexRange part, int64_t parts, float* scratch, const Output& to) {
  for_pieces(range, x, [&](int64_t row, int64_t n, int64_t tile, int64_t tiles) {
    const int64_t at = row * to.stride + to.column + tile * kTileRows;
    const int64_t panels = x.cut().count(n);
    const PieceRows rows{.x = x.at(row),
                         .n = n,
                         .cut = x.cut(),
                         .begin = split_range(panels, parts, part.begin).begin,
                         .end = split_range(panels, parts, part.end - 1).end};
    if (rows.begin == rows.end) return;
    kernels.multiply(w, tile, tiles, rows, scratch,
                     {.y = static_cast<char*>(to.y) + at * static_cast<int64_t>(dtype_size(to.dtype)),
                      .dtype = to.dtype,
                      .stride = to.stride,
                      .columns = w.rows - tile * kTileRows});
  });
}

}  // namespace dsv4::cpu
