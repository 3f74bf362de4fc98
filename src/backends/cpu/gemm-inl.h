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

#include "backends/cpu/decode-inl.h"
#include "backends/cpu/kernels.h"

HWY_BEFORE_NAMESPACE();
namespace dsv4::cpu::HWY_NAMESPACE {

constexpr int64_t kTileUnits = kTileK / kUnitValues;
// Whether a tile's scales may join its weights (Tiles::scales_fold).
constexpr bool kCanFold = kUnitValues == 2;

// Into the second-level cache: the first is too small for what arrives early.
HWY_INLINE void prefetch(const uint8_t* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

// One block of a tile as units in the order of its lines, [pair of groups][unit][group of the pair][32 rows],
// and its scales [groups][32 rows] unless they are folded in. Memory `ahead` bytes on is requested early.
constexpr int64_t kUnitStep = 2 * kTileRows, kBlockFloats = kTileUnits * kTileRows;

template <class F, bool kFold>
HWY_INLINE void decode(const Tiles& w, const uint8_t* block, int64_t ahead, float* units, float* scales) {
  constexpr int kGroups = static_cast<int>(kTileK) / F::kGroup;
  constexpr int kSteps = F::kGroup / kUnitValues / F::kLineUnits;
  const uint8_t* line = block;
  typename F::template Scales<kFold> scale(block, w.global_scale);
  for (int pair = 0; pair < kGroups; pair += 2, scale.template advance<2>()) {
    typename F::Fold fold[4];
    if constexpr (kFold) {
      for (int part = 0; part < 4; ++part) fold[part].set(scale.bytes(part / 2, part % 2));
    }
    for (int s = 0; s < kSteps; ++s, units += F::kLineUnits * kUnitStep) {
      DSV4_UNROLL
      for (int part = 0; part < 4; ++part, line += kLineBytes) {
        prefetch(line + ahead, kLineBytes);
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

// Registers: kR x kC sums, kC weights, one broadcast; and where pairs are multiplied, which leaves half
// as many steps between the totals, kR x kC totals that stay for the whole block.
#if HWY_TARGET == HWY_AVX3_DL
constexpr size_t kRows = 3, kCols = 4;
#elif HWY_TARGET == HWY_AVX3
constexpr size_t kRows = 12, kCols = 2;
#else
constexpr size_t kRows = 6, kCols = 2;
#endif
constexpr bool kTotalsStay = kUnitValues == 2;
// Tiles side by side.
constexpr size_t kStrip = kCols * kLanes > static_cast<size_t>(kTileRows) ? 2 : 1;

struct MicroArgs {
  const float* x;  // [units][x_stride]
  int64_t x_stride;
  const float* w;  // a block as `decode` has it, the next tile's w_tile behind
  int64_t w_tile;
  const float* scales;  // [groups][32], the next tile's kScaleFloats behind
  float* out;           // [rows][out_stride]
  int64_t out_stride;
  int groups, group_units;
  bool first;  // block of K: `out` has nothing yet. Only where kTotalsStay; elsewhere it has zeros
};

constexpr int64_t kScaleFloats = kMaxGroups * kTileRows;

// Not inlined: the unrolled shapes would be copied into every format's gemm, and compiling them would
// take most of the build.
template <size_t kR, size_t kC, bool kFold>
HWY_NOINLINE void micro(const MicroArgs& a) {
  const DF df;
  const float* x = a.x;
  const auto out = [&](size_t r, size_t c) { return a.out + static_cast<int64_t>(r) * a.out_stride + c * kLanes; };
  // Column vector c of a row that lies tile by tile.
  const auto column = [](const float* row, int64_t tile_stride, size_t c) HWY_ATTR {
    constexpr size_t kTileVectors = static_cast<size_t>(kTileRows) / kLanes;
    return hn::LoadU(DF(), row + static_cast<int64_t>(c / kTileVectors) * tile_stride + c % kTileVectors * kLanes);
  };
  VF total[kTotalsStay ? kR : 1][kC];
  if constexpr (kTotalsStay) {
    DSV4_UNROLL
    for (size_t r = 0; r < kR; ++r) {
      DSV4_UNROLL
      for (size_t c = 0; c < kC; ++c) total[r][c] = a.first ? hn::Zero(df) : hn::LoadU(df, out(r, c));
    }
  }
  for (int g = 0; g < a.groups; ++g) {
    const float* w = a.w + g / 2 * a.group_units * kUnitStep + g % 2 * kTileRows;
    VF acc[kR][kC];
    DSV4_UNROLL
    for (size_t r = 0; r < kR; ++r) {
      DSV4_UNROLL
      for (size_t c = 0; c < kC; ++c) acc[r][c] = hn::Zero(df);
    }
    for (int k = 0; k < a.group_units; ++k, x += a.x_stride, w += kUnitStep) {
      VF value[kC];
      DSV4_UNROLL
      for (size_t c = 0; c < kC; ++c) value[c] = column(w, a.w_tile, c);
      DSV4_UNROLL
      for (size_t r = 0; r < kR; ++r) {
        const VF xr = broadcast(x + r);
        DSV4_UNROLL
        for (size_t c = 0; c < kC; ++c) acc[r][c] = dot(xr, value[c], acc[r][c]);
      }
    }
    DSV4_UNROLL
    for (size_t r = 0; r < kR; ++r) {
      DSV4_UNROLL
      for (size_t c = 0; c < kC; ++c) {
        if constexpr (kFold) {
          // An addition, unlike a multiply-add, has ports on Zen that the products do not use.
          total[r][c] = hn::Add(acc[r][c], total[r][c]);
        } else {
          const VF scale = column(a.scales + g * kTileRows, kScaleFloats, c);
          if constexpr (kTotalsStay) {
            total[r][c] = hn::MulAdd(acc[r][c], scale, total[r][c]);
          } else {
            hn::StoreU(hn::MulAdd(acc[r][c], scale, hn::LoadU(df, out(r, c))), df, out(r, c));
          }
        }
      }
    }
  }
  if constexpr (kTotalsStay) {
    DSV4_UNROLL
    for (size_t r = 0; r < kR; ++r) {
      DSV4_UNROLL
      for (size_t c = 0; c < kC; ++c) hn::StoreU(total[r][c], df, out(r, c));
    }
  }
}

template <size_t kR, bool kFold>
HWY_NOINLINE void micro_rows(size_t rows, size_t tiles, const MicroArgs& a) {
  if (rows == kR) {
    if (tiles == kStrip) {
      micro<kR, kCols, kFold>(a);
    } else {
      micro<kR, kCols / kStrip, kFold>(a);
    }
  } else if constexpr (kR > 1) {
    micro_rows<kR - 1, kFold>(rows, tiles, a);
  }
}

// Every row of x, block b of K, times a strip whose units lie at `units`. `ahead`, where it is set, is the
// packed block that is read next.
template <class F, bool kFold>
void multiply_strip(const Tiles& w, size_t tiles, int64_t b, const float* x, int64_t n, const float* units,
                    int64_t w_tile, const float* scales, const uint8_t* ahead, float* out, int64_t columns) {
  constexpr int kGroups = static_cast<int>(kTileK) / F::kGroup;
  constexpr int64_t kBytes = block_bytes(F::kFormat);
  const int64_t depth = w.padded_cols() / kUnitValues;
  const int64_t share = ceil_div(kBytes * static_cast<int64_t>(kRows), n * kLineBytes) * kLineBytes;  // per call
  for (int64_t first = 0; first < n; first += kPanelRows) {
    const int64_t panel_rows = std::min(kPanelRows, n - first);
    const float* panel = x + first * depth + b * kTileUnits * panel_rows;
    // Parts as even as can be: one row alone would wait for the latency.
    const int64_t parts = ceil_div(panel_rows, static_cast<int64_t>(kRows));
    for (int64_t part = 0, r = 0; part < parts; ++part) {
      const int64_t rows = (panel_rows - r) / (parts - part);
      if (ahead) {
        for (size_t t = 0; t < tiles; ++t) prefetch(ahead + static_cast<int64_t>(t) * w.tile_bytes(), share);
        ahead += share;
      }
      for (int64_t c = 0; c < kTileRows; c += static_cast<int64_t>(kCols / kStrip * kLanes)) {
        micro_rows<kRows, kFold>(static_cast<size_t>(rows), tiles,
                                 {.x = panel + r,
                                  .x_stride = panel_rows,
                                  .w = units + c,
                                  .w_tile = w_tile,
                                  .scales = scales + c,
                                  .out = out + (first + r) * columns + c,
                                  .out_stride = columns,
                                  .groups = kGroups,
                                  .group_units = F::kGroup / kUnitValues,
                                  .first = b == 0});
      }
      r += rows;
    }
  }
}

template <class F, bool kFold>
void gemm_as(const Tiles& w, int64_t tile, int64_t tiles, const float* x, int64_t n, float* decoded, float* out) {
  // Lines of BF16 are units already.
  constexpr bool kAsPacked = F::kFormat == WeightFormat::kBf16 && kUnitValues == 2;
  constexpr int64_t kBytes = block_bytes(F::kFormat);
  const int64_t columns = tiles * kTileRows;
  float* scales = decoded + kStrip * kBlockFloats;
  if (!kTotalsStay) memset(out, 0, static_cast<size_t>(n * columns) * sizeof(float));
  for (int64_t b = 0; b < w.blocks(); ++b) {
    for (int64_t t = 0; t < tiles; t += static_cast<int64_t>(kStrip)) {
      const size_t strip = static_cast<size_t>(std::min(static_cast<int64_t>(kStrip), tiles - t));
      const uint8_t* block = w.data + (tile + t) * w.tile_bytes() + b * kBytes;
      // The next block of these tiles is requested early: with many rows a little at every call, as a burst
      // of requests would wait for itself; with few, while this one is decoded.
      const bool few = n <= kPanelRows && !kAsPacked;
      const uint8_t* ahead = few ? nullptr : block + kBytes;
      float* strip_out = out + t * kTileRows;
      if constexpr (kAsPacked) {
        multiply_strip<F, kFold>(w, strip, b, x, n, reinterpret_cast<const float*>(block), w.tile_bytes() / 4, scales,
                                 ahead, strip_out, columns);
      } else {
        for (size_t i = 0; i < strip; ++i) {
          decode<F, kFold>(w, block + static_cast<int64_t>(i) * w.tile_bytes(), few ? kBytes : 0,
                           decoded + i * kBlockFloats, scales + i * kScaleFloats);
        }
        multiply_strip<F, kFold>(w, strip, b, x, n, decoded, kBlockFloats, scales, ahead, strip_out, columns);
      }
    }
  }
}

template <class F>
void gemm(const Tiles& w, int64_t tile, int64_t tiles, const float* x, int64_t n, float* decoded, float* out) {
  if constexpr (kCanFold && F::kFormat != WeightFormat::kNvfp4) {
    if (w.scales_fold) return gemm_as<F, true>(w, tile, tiles, x, n, decoded, out);
  }
  gemm_as<F, false>(w, tile, tiles, x, n, decoded, out);
}

}  // namespace dsv4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
