// What the vector code offers to the ops: plain functions, one table per instruction set, chosen once
// when the backend is made. Kernels see pointers and sizes only and know nothing of threads.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "backends/cpu/tiles.h"
#include "base/dtype.h"
#include "dsv4/status.h"
#include "formats/bf16.h"

namespace dsv4::cpu {

// Rows of activations lie in pieces of kPieceRows, the last of what is left, and those in panels whose rows lie side by
// side, so that one step along K reads consecutive units. A unit is a float, or where unit_values is 2 the bits of two
// BF16 values of K, the first in the high half. Up to kFewRows rows are one panel, [Kp / unit_values][rows]; Kp = K
// rounded up to kTileK, filled with zeros. More make as few panels as hold them, as even as can be, cut along K into
// blocks: [block][panel][unit][row of the panel], so that a block is read from front to back. How, an instruction set says:
inline constexpr int64_t kFewRows = 12;
inline constexpr int64_t kMaxBlockUnits = 192;
struct PanelCut {
  int64_t most;   // rows of a panel, where there are several: for whose sums there are registers
  int64_t block;  // units of K whose weights, decoded, stay in the first-level cache beside a panel

  constexpr int64_t count(int64_t rows) const { return rows <= kFewRows ? 1 : ceil_div(rows, most); }
  // The first row of a panel. The first of them may have one row more.
  constexpr int64_t begin(int64_t rows, int64_t panel) const {
    const int64_t n = count(rows), extra = rows % n;
    return panel * (rows / n) + (panel < extra ? panel : extra);
  }
  // Units before block b of the panel that begins with row r, in a piece of `rows` rows of `depth` units.
  constexpr int64_t at(int64_t rows, int64_t depth, int64_t r, int64_t b) const {
    const int64_t before = b * block, left = depth - before;
    return before * rows + r * (left < block ? left : block);
  }
};

// Rows and tiles that one call of `multiply` takes at most.
inline constexpr int64_t kPieceRows = 264;
inline constexpr int64_t kPieceTiles = 4;
// Groups of scales of a block, of units of one value or two.
inline constexpr int64_t kBlockGroups = ceil_div(2 * kMaxBlockUnits, kTileK) * kMaxGroups;
// Floats of scratch that one worker needs for `multiply`: a block of a tile as units, its scales, and sums.
inline constexpr int64_t kMultiplyFloats =
    kTileRows * (kMaxBlockUnits + kBlockGroups) + kPieceRows * kPieceTiles * kTileRows;

// Where results go: row r, column c to y[r * stride + c], c < columns.
struct Target {
  void* y = nullptr;
  DType dtype = DType::kF32;  // or BF16
  int64_t stride = 0;
  int64_t columns = 0;

  Target from(int64_t column) const {
    Target t = *this;
    t.y = static_cast<char*>(y) + column * static_cast<int64_t>(dtype_size(dtype));
    t.columns -= column;
    return t;
  }
};

// What one call of `multiply` takes of x: panels [begin, end) of a piece of n <= kPieceRows rows.
struct PieceRows {
  const float* x = nullptr;  // of the piece
  int64_t n = 0;
  PanelCut cut;
  int64_t begin = 0, end = 0;

  int64_t first() const { return cut.begin(n, begin); }
  int64_t rows() const { return cut.begin(n, end) - first(); }
};
constexpr PieceRows whole_piece(const float* x, int64_t n, PanelCut cut) { return {x, n, cut, 0, cut.count(n)}; }

struct LinearKernels {
  int64_t unit_values = 1;  // values of K in a unit
  PanelCut panels;
  // to[r][i] = row r of the piece times row i of `tiles` <= kPieceTiles consecutive tiles, for the rows in x; what
  // `to` has no column for is padding. The sums have the same order whatever x and tiles are: groups of K ascending
  // (tiles.h), each a chain of fused multiply-adds from zero, times its scale, added to the total ascending.
  void (*multiply)(const Tiles& w, int64_t tile, int64_t tiles, const PieceRows& x, float* scratch, const Target& to);
  // BF16 -> act8 -> dequantised, or BF16 as it is; [K] -> [Kp / unit_values] units, zero-padded.
  void (*expand_act8)(const bf16* x, int64_t K, float* out);
  void (*expand_bf16)(const bf16* x, int64_t K, float* out);
  // [rows][stride] -> [n][rows]; n is a multiple of 4.
  void (*transpose)(const float* x, int64_t stride, int64_t rows, int64_t n, float* out);
  void (*round_bf16)(const float* x, int64_t n, bf16* out);
  // h = BF16(silu(min(BF16 a, limit)) * clamp(BF16 u, +-limit) * weight)
  void (*swiglu)(const float* a, const float* u, int64_t n, float limit, float weight, bf16* h);
  // sum += BF16(x), in FP32.
  void (*add_rounded)(const float* x, int64_t n, float* sum);
};

inline constexpr int64_t kMaxStreams = 8;  // residual streams

struct RowKernels {
  double (*sum_squares)(const bf16* x, int64_t n);
  void (*rms_norm)(const bf16* x, const bf16* w, int64_t n, float eps, bf16* y);  // y may be x
  void (*head_norm)(bf16* q, int64_t d, float eps);                               // the BF16 chain
  // out[c] = sum_i x[i] w[c * n + i], c < count <= 4
  void (*dots)(const bf16* x, const float* w, int64_t n, int64_t count, float* out);
  // Values [begin, end) of the streams [hc, D]; see HcPreArgs and HcPostArgs.
  void (*mix)(const bf16* streams, const float* pre, int64_t hc, int64_t D, int64_t begin, int64_t end,
              bf16* out);
  void (*post)(bf16* streams, const bf16* out, const float* post, const float* comb, int64_t hc, int64_t D,
               int64_t begin, int64_t end);
};

// A row that an entry pools: c and s of one token (s without ape where ape is set).
struct PoolRow {
  const float *c, *s, *ape;
};

// Of 16 columns of scores each: M = the highest, sum = sum of e^(s - M), denominator = that and e^(sink - M).
struct Softmax16 {
  float *top, *sum, *denominator;
};

// Widths called heads or columns are multiples of 16.
struct AttentionKernels {
  void (*widen)(const bf16* x, int64_t n, float* out);
  void (*widen_kv)(const uint8_t* row, int64_t d, int64_t r, float* out);  // formats/kv_row.h
  // s[j][h] = sum_k keys[j][k] q[k][h]; q [d, heads], keys [n, key_stride]
  void (*scores)(const float* q, int64_t heads, const float* keys, int64_t key_stride, int64_t n, int64_t d,
                 float* s);
  // 16 columns of s [n, stride], multiplied by scale: s = BF16(e^(s*scale - M)).
  void (*softmax16)(float* s, int64_t stride, int64_t n, float scale, const float* sink, const Softmax16& to);
  // out[h][c] = sum_j p[j][h] keys[j][c]
  void (*weighted_sum)(const float* p, int64_t p_stride, const float* keys, int64_t key_stride, int64_t n,
                       int64_t heads, int64_t columns, float* out);
  void (*divide_round)(const float* x, float denominator, int64_t n, bf16* out);
  // out[j] = sum_h max(s[j][h], 0) weights[h]
  void (*index_scores)(const float* s, int64_t heads, int64_t n, const float* weights, float* out);
  // out[16] = per column, softmax over the rows of s, times c, summed.
  void (*pool16)(const PoolRow* rows, int64_t n, int64_t column, float* out);
};

// Everything that one instruction set offers.
struct Kernels {
  std::string_view isa;
  LinearKernels linear;
  RowKernels rows;
  AttentionKernels attention;
};

// `isa`: "" = the best of this machine, or a name that isa_names() lists.
Result<Kernels> select_kernels(std::string_view isa);
// The instruction sets compiled in that this machine can run, best first.
std::string isa_names();

// One per file of vector code; valid for the target that highway has chosen at the time.
LinearKernels linear_kernels();
RowKernels row_kernels();
AttentionKernels attention_kernels();

}  // namespace dsv4::cpu
