// Packed weights times many rows of activations: every piece of weights is decoded once. The sums are those
// of gemv, in the same order.
#if defined(DSV4_CPU_GEMM_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef DSV4_CPU_GEMM_INL
#undef DSV4_CPU_GEMM_INL
#else
#define DSV4_CPU_GEMM_INL
#endif

#include <algorithm>
#include <cstring>
#include <utility>

#include "backends/cpu/decode-inl.h"
#include "backends/cpu/kernels.h"

HWY_BEFORE_NAMESPACE();
namespace dsv4::cpu::HWY_NAMESPACE {

// Whether a tile's scales may join its weights (Tiles::scales_fold).
constexpr bool kCanFold = kUnitValues == 2;

// Into the second-level cache: the first is too small for what arrives early.
HWY_INLINE void prefetch(const uint8_t* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

constexpr int64_t kUnitStep = 2 * kTileRows, kPackedUnits = kTileK / kUnitValues;

#if HWY_TARGET == HWY_AVX3_DL
// The lines of a block of FP8 whose scales are in the table.
HWY_INLINE void decode_fp8(const uint8_t* line, const Fp8Table& table, float* units) {
  constexpr int kUnits = Fp8::kLineUnits;
  for (const uint8_t* end = line + block_value_bytes(Fp8::kFormat); line < end; units += kUnits * kUnitStep) {
    DSV4_UNROLL
    for (int part = 0; part < 4; ++part, line += kLineBytes) {
      const Fp8::Codes codes = Fp8::load(line, table);
      DSV4_UNROLL
      for (int i = 0; i < kUnits; ++i) store16(Fp8::take(codes, i), units + i * kUnitStep + part * kHalfRows);
    }
  }
}
#endif

// One packed block of a tile as units in the order of its lines, [pair of groups][unit][group of the pair][32 rows],
// and its scales [groups][32 rows] unless they are folded in.
template <class F, bool kFold>
HWY_INLINE void decode(const uint8_t* block, float global_scale, float* units, float* scales) {
  constexpr int kGroups = static_cast<int>(kTileK) / F::kGroup;
  constexpr int kSteps = F::kGroup / kUnitValues / F::kLineUnits;
  const uint8_t* line = values_of(F::kFormat, block);
#if HWY_TARGET == HWY_AVX3_DL
  if constexpr (kFold && F::kFormat == WeightFormat::kFp8Tile128) {
    const uint8_t* bytes = scales_of(F::kFormat, block);
    if (F::one_scale(bytes)) return decode_fp8(line, Fp8Table::scaled(*bytes), units);
  }
#endif
  typename F::template Scales<kFold> scale(block, global_scale);
  for (int pair = 0; pair < kGroups; pair += 2, scale.template advance<2>()) {
    typename F::Fold fold[4];
    if constexpr (kFold) {
      for (int part = 0; part < 4; ++part) fold[part].set(scale.bytes(part / 2, part % 2));
    }
    for (int s = 0; s < kSteps; ++s, units += F::kLineUnits * kUnitStep) {
      DSV4_UNROLL
      for (int part = 0; part < 4; ++part, line += kLineBytes) {
        typename F::Codes codes = F::load(line);
        DSV4_UNROLL
        for (int i = 0; i < F::kLineUnits; ++i) {
          float* to = units + i * kUnitStep + part * kHalfRows;
          if constexpr (kFold) {
            store16(F::take(codes, i, fold[part]), to);
          } else {
            store16(F::take(codes, i), to);
          }
        }
      }
    }
    if constexpr (!kFold) {
      for (int part = 0; part < 4; ++part, scales += kHalfRows) {
        store16(scale.take(part / 2, part % 2), scales);
      }
    }
  }
}

// Registers: kAtOnce groups of K side by side, each kR x kC sums and kC weights; one broadcast; and where there are 32, kR x kC
// totals that stay for a block. Zen 5 starts two products of pairs a cycle that take six, so twelve sums are too few.
constexpr bool kTotalsStay = kLanes == 16;
constexpr size_t kAtOnce = kTotalsStay && kUnitValues == 2 ? 2 : 1, kRows = kAtOnce == 2 ? 4 : 6, kCols = 2;
// Of 32 KB of cache 24 for weights, or 16 where units are as many values.
constexpr PanelCut kPanels{.most = static_cast<int64_t>(kRows), .block = kUnitValues == 2 ? 192 : 128};
constexpr int64_t kBlockPacked = kPanels.block / kPackedUnits;  // packed blocks that are multiplied at once
static_assert(kPanels.block <= kMaxBlockUnits && kPanels.block % kPackedUnits == 0);

// A block of rows.
struct MicroArgs {
  const float* x;  // [units][x_stride]
  int64_t x_stride;
  const float* w;       // as `decode` has it
  const float* scales;  // [groups][32]
  float* sums;          // [rows][32], the totals of earlier blocks of K; zeros in the first unless kTotalsStay
  int groups, group_units;
  bool first;  // block of K. With kTotalsStay `sums` has nothing yet
  // What to request of memory, so many bytes with every kAtOnce groups.
  const uint8_t* ahead;
  int64_t ahead_step;
  // With kTotalsStay, in the last block of K: where the totals go, [rows][to_stride] floats, or else BF16.
  float* to;
  bf16* to_bf16;
  int64_t to_stride;
};

void round_bf16_array(const float* x, int64_t n, bf16* out) {
  int64_t i = 0;
  for (; i + static_cast<int64_t>(kLanes) <= n; i += static_cast<int64_t>(kLanes)) {
    store_bf16(hn::LoadU(DF(), x + i), out + i);
  }
  for (; i < n; ++i) out[i] = to_bf16(x[i]);
}

// Two vectors of a row's totals, rounded.
HWY_INLINE void store_rounded(VF low, VF high, bf16* to) {
#if HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_AVX3
  // 64 bytes in one store.
  const __m256i l = _mm512_cvtepi32_epi16(bf16_bits(low).raw), h = _mm512_cvtepi32_epi16(bf16_bits(high).raw);
  _mm512_storeu_si512(to, _mm512_inserti64x4(_mm512_castsi256_si512(l), h, 1));
#else
  store_bf16(low, to);
  store_bf16(high, to + kLanes);
#endif
}

// The lines of a result arrive while its rows are multiplied.
template <class T>
HWY_INLINE void request_lines(const T* to, int64_t stride, size_t rows) {
  for (size_t r = 0; r < rows; ++r, to += stride) {
    for (int64_t i = 0; i < kTileRows; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(to + i, 1);
  }
}

// Not inlined: the unrolled shapes would be copied into every format's gemm, and compiling them would
// take most of the build; and with a loop around it the inner one has no registers left.
template <size_t kR, bool kFold>
HWY_NOINLINE void micro(const MicroArgs& a) {
  const DF df;
  constexpr size_t kC = kCols;
  const float* x = a.x;
  float* sums = a.sums;
  const auto at = [&](size_t r, size_t c) { return sums + r * kTileRows + c * kLanes; };
  VF total[kTotalsStay ? kR : 1][kC];
  if constexpr (kTotalsStay) {
    DSV4_UNROLL
    for (size_t r = 0; r < kR; ++r) {
      DSV4_UNROLL
      for (size_t c = 0; c < kC; ++c) total[r][c] = a.first ? hn::Zero(df) : hn::LoadU(df, at(r, c));
    }
  }
  const int64_t apart = a.group_units * a.x_stride;  // of the groups' units
  const uint8_t* ahead = a.ahead;
  const float* w = a.w;
  for (int first = 0; first < a.groups; first += static_cast<int>(kAtOnce)) {
    prefetch(ahead, a.ahead_step);
    ahead += a.ahead_step;
    if constexpr (kAtOnce == 1) w = a.w + first / 2 * a.group_units * kUnitStep + first % 2 * kTileRows;
    VF acc[kAtOnce][kR][kC];
    DSV4_UNROLL
    for (size_t s = 0; s < kAtOnce; ++s) {
      DSV4_UNROLL
      for (size_t r = 0; r < kR; ++r) {
        DSV4_UNROLL
        for (size_t c = 0; c < kC; ++c) acc[s][r][c] = hn::Zero(df);
      }
    }
    const float* at_once[kAtOnce];
    DSV4_UNROLL
    for (size_t s = 0; s < kAtOnce; ++s) {
      at_once[s] = x + static_cast<int64_t>(s) * apart;
      // g++ would move one pointer and keep the others' distances in registers, of which it then has too few.
      asm("" : "+r"(at_once[s]));
    }
    for (int k = a.group_units; k > 0; --k, w += kUnitStep) {
      DSV4_UNROLL
      for (size_t s = 0; s < kAtOnce; ++s) {
        VF value[kC];
        DSV4_UNROLL
        for (size_t c = 0; c < kC; ++c) value[c] = hn::LoadU(df, w + s * kTileRows + c * kLanes);
        DSV4_UNROLL
        for (size_t r = 0; r < kR; ++r) {
          const VF xr = broadcast(at_once[s] + r);
          DSV4_UNROLL
          for (size_t c = 0; c < kC; ++c) acc[s][r][c] = dot(xr, value[c], acc[s][r][c]);
        }
        at_once[s] += a.x_stride;
      }
    }
    x = at_once[kAtOnce - 1];
    DSV4_UNROLL
    for (size_t s = 0; s < kAtOnce; ++s) {
      DSV4_UNROLL
      for (size_t c = 0; c < kC; ++c) {
        VF scale;
        if constexpr (!kFold) scale = hn::LoadU(df, a.scales + (static_cast<size_t>(first) + s) * kTileRows + c * kLanes);
        DSV4_UNROLL
        for (size_t r = 0; r < kR; ++r) {
          if constexpr (kFold) {
            // An addition, unlike a multiply-add, has ports on Zen that the products do not use.
            total[r][c] = hn::Add(acc[s][r][c], total[r][c]);
          } else if constexpr (kTotalsStay) {
            total[r][c] = hn::MulAdd(acc[s][r][c], scale, total[r][c]);
          } else {
            hn::StoreU(hn::MulAdd(acc[s][r][c], scale, hn::LoadU(df, at(r, c))), df, at(r, c));
          }
        }
      }
    }
  }
  if constexpr (kTotalsStay) {
    bf16* to_bf16 = a.to_bf16;
    const int64_t stride = a.to_stride;
    if (to_bf16) {
      DSV4_UNROLL
      for (size_t r = 0; r < kR; ++r, to_bf16 += stride) store_rounded(total[r][0], total[r][1], to_bf16);
    } else {
      float* to = a.to ? a.to : sums;
      const int64_t to_stride = a.to ? stride : kTileRows;
      DSV4_UNROLL
      for (size_t r = 0; r < kR; ++r, to += to_stride) {
        DSV4_UNROLL
        for (size_t c = 0; c < kC; ++c) hn::StoreU(total[r][c], df, to + c * kLanes);
      }
    }
  }
}

// `count` blocks of kR rows, the units of each x_step floats after those of the one before, and with each `share` bytes to request:
// within it if ahead_step says how many with kAtOnce groups.
template <size_t kR, bool kFold>
HWY_NOINLINE void micro_run(MicroArgs& a, int64_t count, int64_t x_step, int64_t share) {
  for (int64_t i = 0; i < count; ++i) {
    if (a.ahead_step == 0) {
      prefetch(a.ahead, share);
      a.ahead += share;
    }
    if (a.to) request_lines(a.to, a.to_stride, kR);
    if (a.to_bf16) request_lines(a.to_bf16, a.to_stride, kR);
    constexpr int64_t kStep = static_cast<int64_t>(kCols * kLanes);
    for (int64_t column = 0; column < kTileRows; column += kStep) {
      micro<kR, kFold>(a);
      a.ahead += a.ahead_step * a.groups / static_cast<int64_t>(kAtOnce);
      a.w += kStep;
      a.scales += kStep;
      a.sums += kStep;
    }
    a.w -= kTileRows;
    a.scales -= kTileRows;
    a.sums += (static_cast<int64_t>(kR) - 1) * kTileRows;
    a.x += x_step;
    if (a.to) a.to += static_cast<int64_t>(kR) * a.to_stride;
    if (a.to_bf16) a.to_bf16 += static_cast<int64_t>(kR) * a.to_stride;
  }
}

template <size_t kR, bool kFold>
HWY_NOINLINE void micro_rows(size_t rows, MicroArgs& a, int64_t count, int64_t x_step, int64_t share) {
  if (rows == kR) {
    micro_run<kR, kFold>(a, count, x_step, share);
  } else if constexpr (kR > 1) {
    micro_rows<kR - 1, kFold>(rows, a, count, x_step, share);
  }
}

// Rows of [n][stride] floats to rows of y from `row` and columns from `column` on.
void finish(const float* from, int64_t stride, int64_t n, int64_t columns, const Target& to, int64_t row,
            int64_t column) {
  columns = std::min(columns, to.columns - column);
  for (int64_t r = 0; r < n; ++r, from += stride) {
    const int64_t at = (row + r) * to.stride + column;
    if (to.dtype == DType::kF32) {
      memcpy(static_cast<float*>(to.y) + at, from, static_cast<size_t>(columns) * sizeof(float));
    } else {
      round_bf16_array(from, columns, static_cast<bf16*>(to.y) + at);
    }
  }
}

// Scratch of a piece (kMultiplyFloats).
struct GemmScratch {
  float *units, *scales, *sums;
  explicit GemmScratch(float* base)
      : units(base), scales(units + kMaxBlockUnits * kTileRows), sums(scales + kBlockGroups * kTileRows) {}
};

// A block of K of one tile, whose results are columns from `column` on.
struct TileBlock {
  const float* units;
  const float* scales;
  float* sums;           // [n][32]
  int64_t b;             // its place along K
  bool last;             // along K
  int64_t column;
  const uint8_t* ahead;  // the packed block that is read next, or null
  int64_t ahead_bytes;
};

// The rows in x times a block of a tile.
template <class F, bool kFold>
void multiply_block(const TileBlock& t, const PieceRows& x, int64_t depth, const Target& to) {
  const int64_t units = std::min(kPanels.block, depth - t.b * kPanels.block);
  const int64_t n = x.n, panels = kPanels.count(n), each = n / panels, extra = n % panels;
  constexpr int kGroupUnits = F::kGroup / kUnitValues;
  static_assert(kTileK / F::kGroup % static_cast<int64_t>(kAtOnce) == 0);
  // Straight to y, where that has all columns.
  const bool direct = kTotalsStay && t.last && t.column + kTileRows <= to.columns;
  const int groups = static_cast<int>(units) / kGroupUnits;
  // What is read next is requested with every block of rows, and within it where that is much: a burst waits for itself.
  constexpr int64_t kBurst = 32 * kLineBytes;
  const int64_t share = t.ahead ? ceil_div(t.ahead_bytes * kPanels.most, x.rows() * kLineBytes) * kLineBytes : 0;
  const int64_t requests = groups / static_cast<int>(kAtOnce) * (kTileRows / static_cast<int64_t>(kCols * kLanes));
  MicroArgs a{.x = x.x + kPanels.at(n, depth, x.first(), t.b),
              .x_stride = 0,
              .w = t.units,
              .scales = t.scales,
              .sums = t.sums + x.first() * kTileRows,
              .groups = groups,
              .group_units = kGroupUnits,
              .first = t.b == 0,
              .ahead = t.ahead,
              .ahead_step = share > kBurst ? ceil_div(share, requests * kLineBytes) * kLineBytes : 0,
              .to = nullptr,
              .to_bf16 = nullptr,
              .to_stride = to.stride};
  if (direct) {
    const int64_t y = x.first() * to.stride + t.column;
    if (to.dtype == DType::kBF16) a.to_bf16 = static_cast<bf16*>(to.y) + y;
    else a.to = static_cast<float*>(to.y) + y;
  }
  if (panels == 1) {
    // Parts as even as can be: one row alone would wait for the latency.
    a.x_stride = n;
    for (int64_t r = 0, parts = ceil_div(n, kPanels.most); r < n; --parts) {
      const int64_t rows = (n - r) / parts;
      micro_rows<kRows, kFold>(static_cast<size_t>(rows), a, 1, rows, share);
      r += rows;
    }
  } else {
    const int64_t more = std::clamp<int64_t>(extra - x.begin, 0, x.end - x.begin);  // panels with a row more
    for (const auto& [rows, count] : {std::pair{each + 1, more}, std::pair{each, x.end - x.begin - more}}) {
      a.x_stride = rows;
      if (count > 0) micro_rows<kRows, kFold>(static_cast<size_t>(rows), a, count, rows * units, share);
    }
  }
  if (t.last && !direct) finish(t.sums + x.first() * kTileRows, kTileRows, x.rows(), kTileRows, to, x.first(), t.column);
}

// Blocks in the order in which x is read: every tile's first, every tile's second, ...
template <class F, bool kFold>
void gemm_as(const Tiles& w, int64_t tile, int64_t tiles, const PieceRows& x, float* scratch, const Target& to) {
  // Lines of BF16 are units already.
  constexpr bool kAsPacked = F::kFormat == WeightFormat::kBf16 && kUnitValues == 2;
  constexpr int64_t kBytes = block_bytes(F::kFormat), kGroups = kTileK / F::kGroup;
  const GemmScratch s(scratch);
  if (!kTotalsStay) memset(s.sums, 0, static_cast<size_t>(x.n * tiles * kTileRows) * sizeof(float));
  const int64_t blocks = ceil_div(w.blocks(), kBlockPacked), count = blocks * tiles;
  const auto packed_in = [&](int64_t b) { return std::min(kBlockPacked, w.blocks() - b * kBlockPacked); };
  // After the last of these tiles' come the next tiles' first.
  const auto packed_at = [&](int64_t i) {
    const int64_t t = tile + i / count * tiles + i % tiles;
    return t < w.tiles() ? w.data + t * w.tile_bytes() + i % count / tiles * kBlockPacked * kBytes : nullptr;
  };
  for (int64_t i = 0; i < count; ++i) {
    const int64_t b = i / tiles, packed = packed_in(b);
    const uint8_t* block = packed_at(i);
    if constexpr (!kAsPacked) {
      for (int64_t j = 0; j < packed; ++j) {
        decode<F, kFold>(block + j * kBytes, w.global_scale, s.units + j * kPackedUnits * kTileRows,
                         s.scales + j * kGroups * kTileRows);
      }
    }
    multiply_block<F, kFold>({.units = kAsPacked ? reinterpret_cast<const float*>(block) : s.units,
                              .scales = s.scales,
                              .sums = s.sums + i % tiles * x.n * kTileRows,
                              .b = b,
                              .last = b + 1 == blocks,
                              .column = i % tiles * kTileRows,
                              .ahead = packed_at(i + 1),
                              .ahead_bytes = packed_in((i + 1) % count / tiles) * kBytes},
                             x, w.padded_cols() / kUnitValues, to);
  }
}

template <class F, bool kFold>
void gemm_in_order(const Tiles& w, int64_t tile, int64_t tiles, const PieceRows& x, float* scratch, const Target& to) {
  constexpr int64_t kFits = 65536;  // units of x that stay in the second-level cache beside all else
  // Then memory is read from front to back, which is fastest.
  const int64_t step = x.n * (w.padded_cols() / kUnitValues) <= kFits ? 1 : tiles;
  for (int64_t t = 0; t < tiles; t += step) gemm_as<F, kFold>(w, tile + t, step, x, scratch, to.from(t * kTileRows));
}

template <class F>
void gemm(const Tiles& w, int64_t tile, int64_t tiles, const PieceRows& x, float* scratch, const Target& to) {
  if constexpr (kCanFold && F::kFormat != WeightFormat::kNvfp4) {
    if (w.scales_fold) return gemm_in_order<F, true>(w, tile, tiles, x, scratch, to);
  }
  gemm_in_order<F, false>(w, tile, tiles, x, scratch, to);
}

}  // namespace dsv4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
