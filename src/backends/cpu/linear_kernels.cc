// Multiplying packed weights with one row of activations (GEMV) or many (gemm-inl.h), and what belongs to a
// linear's input and output.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/linear_kernels.cc"
#include "backends/cpu/targets.h"
#include <hwy/foreach_target.h>  // IWYU pragma: keep

#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <cstring>

#include "backends/cpu/gemm-inl.h"
#include "backends/cpu/kernels.h"
#include "formats/quantise.h"

HWY_BEFORE_NAMESPACE();
namespace dsv4::cpu::HWY_NAMESPACE {

// Rows that gemv takes at once: without pairs the registers suffice for one.
constexpr int64_t kGemvRows = kUnitValues == 2 ? 4 : 1;
// Rows up to which it is faster than decoding a block first. BF16 needs no decoding.
constexpr int64_t most_gemv_rows(WeightFormat format) {
  return kGemvRows == 1 || format == WeightFormat::kBf16 ? kGemvRows : kFewRows;
}

// One tile times kRowsAtOnce rows of x, whose units lie side by side, a step of K x_stride apart. The chains of
// two groups and both halves of the tile run side by side, which is the order of the lines in memory;
// without pairs of K, those of four groups where there is one row, to cover the latency.
template <class F, bool kFold, int kRowsAtOnce>
void gemv(const Tiles& w, int64_t tile, const float* x, int64_t x_stride, float* out, int64_t out_stride) {
  constexpr int kGroups = static_cast<int>(kTileK) / F::kGroup;
  constexpr int kSide = kParts == 1 && kUnitValues == 1 && kRowsAtOnce == 1 ? 4 : 2;
  constexpr int kGroupUnits = F::kGroup / kUnitValues;
  constexpr int kSteps = kGroupUnits / F::kLineUnits;  // lines of a group
  constexpr int64_t kStepBytes = 4 * kLineBytes;       // of a pair of groups
  constexpr int64_t kBytes = block_bytes(F::kFormat);
  constexpr int64_t kScaleBytes = kBytes - block_value_bytes(F::kFormat);
  const uint8_t* block = w.data + tile * w.tile_bytes();
  constexpr size_t kR = static_cast<size_t>(kRowsAtOnce), kG = static_cast<size_t>(kSide);
  V16 total[2][kR];
  DSV4_UNROLL
  for (int r = 0; r < kRowsAtOnce; ++r) total[0][r] = total[1][r] = set16(0.0f);
  for (int64_t b = w.blocks(); b > 0; --b, block += kBytes) {
    typename F::template Scales<kFold> scales(block, w.global_scale);
    const uint8_t* lines = values_of(F::kFormat, block);
    for (int first = 0; first < kGroups; first += kSide, scales.template advance<kSide>()) {
      V16 acc[kG][2][kR];
      DSV4_UNROLL
      for (int g = 0; g < kSide; ++g) {
        DSV4_UNROLL
        for (int r = 0; r < kRowsAtOnce; ++r) acc[g][0][r] = acc[g][1][r] = set16(0.0f);
      }
      for (int s = 0; s < kSteps; ++s, lines += kStepBytes, x += F::kLineUnits * x_stride) {
        DSV4_UNROLL
        for (int g = 0; g < kSide; ++g) {
          typename F::Codes codes[2];
          DSV4_UNROLL
          for (int half = 0; half < 2; ++half) {
            const uint8_t* line = lines + line_at(F::kFormat, g * kSteps, half);
            codes[half] = F::load(line);
            prefetch(line + F::kAhead, kLineBytes);
          }
          DSV4_UNROLL
          for (int i = 0; i < F::kLineUnits; ++i) {
            const V16 weights[2] = {F::take(codes[0], i), F::take(codes[1], i)};
            DSV4_UNROLL
            for (int r = 0; r < kRowsAtOnce; ++r) {
              const VF unit = broadcast(x + (g * kGroupUnits + i) * x_stride + r);
              DSV4_UNROLL
              for (int half = 0; half < 2; ++half) acc[g][half][r] = dot16(weights[half], unit, acc[g][half][r]);
            }
          }
        }
      }
      lines += (kSide / 2 - 1) * kSteps * kStepBytes;
      x += (kSide - 1) * kGroupUnits * x_stride;
      DSV4_UNROLL
      for (int g = 0; g < kSide; ++g) {
        DSV4_UNROLL
        for (int half = 0; half < 2; ++half) {
          const V16 scale = scales.take(g, half);
          DSV4_UNROLL
          for (int r = 0; r < kRowsAtOnce; ++r) total[half][r] = fma16(acc[g][half][r], scale, total[half][r]);
        }
      }
    }
    prefetch(block + kBytes - kScaleBytes + F::kAhead, kScaleBytes);
  }
  DSV4_UNROLL
  for (int r = 0; r < kRowsAtOnce; ++r, out += out_stride) {
    store16(total[0][r], out);
    store16(total[1][r], out + kHalfRows);
  }
}

// n rows of x, which are a panel, tile by tile: what a second pass needs is in a cache.
template <class F, bool kFold>
void gemv_rows(const Tiles& w, int64_t tile, int64_t tiles, const float* x, int64_t n, float* out) {
  for (int64_t t = 0; t < tiles; ++t) {
    for (int64_t r = 0; r < n;) {
      const int64_t passes = ceil_div(n - r, kGemvRows), rows = ceil_div(n - r, passes);
      float* to = out + (r * tiles + t) * kTileRows;
      const int64_t stride = tiles * kTileRows;
      if (rows == 1) gemv<F, kFold, 1>(w, tile + t, x + r, n, to, stride);
      if constexpr (kGemvRows > 1) {
        if (rows == 2) gemv<F, kFold, 2>(w, tile + t, x + r, n, to, stride);
        if (rows == 3) gemv<F, kFold, 3>(w, tile + t, x + r, n, to, stride);
        if (rows == 4) gemv<F, kFold, 4>(w, tile + t, x + r, n, to, stride);
      }
      r += rows;
    }
  }
}

// FP32 weights cannot be BF16 pairs: one tile times row r of a piece of n, each value of a unit made a float.
void gemv_f32(const Tiles& w, int64_t tile, const float* piece, int64_t n, int64_t r, float* out) {
  constexpr WeightFormat kFormat = WeightFormat::kF32;
  constexpr int64_t kGroup = group_values(kFormat);
  int64_t p = 0;
  while (kPanels.begin(n, p + 1) <= r) ++p;
  const int64_t first = kPanels.begin(n, p), x_stride = kPanels.begin(n, p + 1) - first;
  const uint8_t* block = w.data + tile * w.tile_bytes();
  V16 total[2] = {set16(0.0f), set16(0.0f)};
  for (int64_t b = 0; b < w.blocks(); ++b, block += block_bytes(kFormat)) {
    const int64_t unit = b * kPackedUnits;
    const float* x = piece + kPanels.at(n, w.padded_cols() / kUnitValues, first, unit / kPanels.block) +
                     unit % kPanels.block * x_stride + r - first;
    for (int64_t group = 0; group < kTileK; group += kGroup) {
      V16 acc[2] = {set16(0.0f), set16(0.0f)};
      for (int64_t k = group; k < group + kGroup; x += x_stride) {
        float value[2] = {*x};
        if constexpr (kUnitValues == 2) {
          const uint32_t pair = float_to_bits(*x);
          value[0] = bits_to_float(pair & 0xffff0000u);
          value[1] = bits_to_float(pair << 16);
        }
        DSV4_UNROLL
        for (int v = 0; v < kUnitValues; ++v, ++k) {
          DSV4_UNROLL
          for (int half = 0; half < 2; ++half) {
            const V16 line = load16(reinterpret_cast<const float*>(block + line_at(kFormat, k, half)));
            acc[half] = fma16(line, set16(value[v]), acc[half]);
          }
        }
      }
      for (int half = 0; half < 2; ++half) total[half] = fma16(acc[half], set16(1.0f), total[half]);
    }
  }
  store16(total[0], out);
  store16(total[1], out + kHalfRows);
}

void multiply_f32(const Tiles& w, int64_t tile, int64_t tiles, const PieceRows& x, float* out) {
  for (int64_t r = 0; r < x.rows(); ++r) {
    for (int64_t t = 0; t < tiles; ++t) {
      gemv_f32(w, tile + t, x.x, x.n, x.first() + r, out + (r * tiles + t) * kTileRows);
    }
  }
}

template <class F>
void multiply_as(const Tiles& w, int64_t tile, int64_t tiles, const PieceRows& x, float* scratch, const Target& to) {
  if (x.n > most_gemv_rows(F::kFormat)) return gemm<F>(w, tile, tiles, x, scratch, to);
  if (F::kFormat == WeightFormat::kMxfp4 && w.scales_fold) {
    gemv_rows<F, true>(w, tile, tiles, x.x, x.n, scratch);
  } else {
    gemv_rows<F, false>(w, tile, tiles, x.x, x.n, scratch);
  }
  finish(scratch, tiles * kTileRows, x.n, tiles * kTileRows, to, 0, 0);
}

void multiply(const Tiles& w, int64_t tile, int64_t tiles, const PieceRows& x, float* scratch, const Target& to) {
  switch (w.format) {
    case WeightFormat::kMxfp4: return multiply_as<Mxfp4>(w, tile, tiles, x, scratch, to);
    case WeightFormat::kNvfp4: return multiply_as<Nvfp4>(w, tile, tiles, x, scratch, to);
    case WeightFormat::kFp8Tile128: return multiply_as<Fp8>(w, tile, tiles, x, scratch, to);
    case WeightFormat::kBf16: return multiply_as<Bf16>(w, tile, tiles, x, scratch, to);
    case WeightFormat::kF32:
    case WeightFormat::kI32:
      multiply_f32(w, tile, tiles, x, scratch);
      return finish(scratch, tiles * kTileRows, x.rows(), tiles * kTileRows, to, x.first(), 0);
  }
}

// The value of the nearest E4M3 code (as a float); |x| is at most a little above 448.
HWY_INLINE VF round_e4m3(VF x) {
  const DF df;
  const DU du;
  const VU u = hn::BitCast(du, x);
  const VU sign = hn::And(u, hn::Set(du, 0x80000000u));
  const VF mag = hn::BitCast(df, hn::AndNot(hn::Set(du, 0x80000000u), u));
  const VU mag_bits = hn::BitCast(du, hn::Min(mag, hn::Set(df, kE4m3Max)));
  const VU odd = hn::And(hn::ShiftRight<20>(mag_bits), hn::Set(du, 1u));
  const VU normal = hn::And(hn::Add(hn::Add(mag_bits, hn::Set(du, 0x7ffffu)), odd), hn::Set(du, 0xfff00000u));
  // Below 2^-6 codes are 2^-9 apart: adding 2^14 rounds to that.
  const VF magic = hn::Set(df, 16384.0f);
  const VF tiny = hn::Sub(hn::Add(mag, magic), magic);
  const VF rounded = hn::IfThenElse(hn::Lt(mag, hn::Set(df, 0x1p-6f)), tiny, hn::BitCast(df, normal));
  return hn::BitCast(df, hn::Or(hn::BitCast(du, rounded), sign));
}

#if HWY_TARGET == HWY_AVX3_DL
// n floats that are exact in BF16, as units; n is a multiple of 32.
HWY_INLINE void store_units(const float* values, int64_t n, float* units) {
  const DU du;
  const VU high = hn::Set(du, 0xffff0000u);
  for (int64_t i = 0; i < n; i += 32) {
    VF first, second;
    hn::LoadInterleaved2(DF(), values + i, first, second);
    const VU pair = hn::Or(hn::And(hn::BitCast(du, first), high), hn::ShiftRight<16>(hn::BitCast(du, second)));
    hn::StoreU(hn::BitCast(DF(), pair), DF(), units + i / 2);
  }
}

// A whole group of act8, rounded as BF16: a code has four of its eight significant bits. False where some value is
// no number or would be a subnormal code, which that does not round.
HWY_INLINE bool expand_act8_group(const bf16* x, float* units) {
  constexpr size_t kVectors = kAct8Group / 32;
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  __m512i value[kVectors], most = _mm512_setzero_si512();
  DSV4_UNROLL
  for (size_t i = 0; i < kVectors; ++i) {
    value[i] = _mm512_loadu_si512(x + 32 * i);
    most = _mm512_max_epu16(most, _mm512_and_si512(value[i], magnitude));
  }
  const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64(most, 1));
  const __m128i quarter = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  // The instruction finds the least.
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(quarter, _mm_set1_epi16(-1)));
  const uint32_t amax = ~static_cast<uint32_t>(_mm_cvtsi128_si32(least)) & 0xffffu;
  if (amax >= 0x7f80) return false;
  const int b = act8_scale_byte(bits_to_float(amax << 16));
  const __m512i zero_up = _mm512_set1_epi16(-1), normal = _mm512_set1_epi16(static_cast<int16_t>(((b - 6) << 7) - 1));
  __mmask32 subnormal = 0;
  DSV4_UNROLL
  for (size_t i = 0; i < kVectors; ++i) {
    const __m512i v = _mm512_and_si512(value[i], magnitude);
    // Zero becomes the highest.
    subnormal |= _mm512_cmplt_epu16_mask(_mm512_add_epi16(v, zero_up), normal);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi16(1));
    const __m512i up = _mm512_add_epi16(_mm512_add_epi16(value[i], _mm512_set1_epi16(7)), odd);
    const __m512i rounded = _mm512_and_si512(up, _mm512_set1_epi16(-16));
    _mm512_storeu_si512(units + 16 * i, _mm512_ror_epi32(rounded, 16));
  }
  return subnormal == 0;
}
#endif

void expand_act8(const bf16* x, int64_t K, float* units) {
  const DF df;
  const DI di;
  for (int64_t begin = 0; begin < K; begin += kAct8Group, x += kAct8Group, units += kAct8Group / kUnitValues) {
    const int64_t n = std::min<int64_t>(kAct8Group, K - begin);
#if HWY_TARGET == HWY_AVX3_DL
    if (n == kAct8Group && expand_act8_group(x, units)) continue;
    alignas(64) float out[kAct8Group];
#else
    float* out = units;
#endif
    auto most = hn::Zero(di);  // of the absolute values' bits: the same order as the values
    int64_t i = 0;
    for (; i + static_cast<int64_t>(kLanes) <= n; i += static_cast<int64_t>(kLanes)) {
      const auto bits = hn::BitCast(di, load_bf16(x + i));
      most = hn::Max(most, hn::And(bits, hn::Set(di, 0x7fffffff)));
    }
    alignas(64) int32_t lanes[kLanes];
    hn::Store(most, di, lanes);
    int32_t amax_bits = 0;
    for (int32_t lane : lanes) amax_bits = std::max(amax_bits, lane);
    for (; i < n; ++i) {
      amax_bits = std::max(amax_bits, static_cast<int32_t>(float_to_bits(abs_bits(to_float(x[i])))));
    }
    if (amax_bits >= 0x7f800000) {
      // Infinities and NaN: rare, and their places matter.
      uint8_t codes[kAct8Group];
      const float scale = ue8m0_to_float(act8_quantise(x, static_cast<int>(n), codes));
      for (i = 0; i < n; ++i) out[i] = e4m3_to_float(codes[i]) * scale;
    } else {
      const uint8_t b = act8_scale_byte(bits_to_float(static_cast<uint32_t>(amax_bits)));
      const float inverse = ue8m0_inverse(b), scale = ue8m0_to_float(b);
      for (i = 0; i + static_cast<int64_t>(kLanes) <= n; i += static_cast<int64_t>(kLanes)) {
        const VF v = round_e4m3(hn::Mul(load_bf16(x + i), hn::Set(df, inverse)));
        hn::StoreU(hn::Mul(v, hn::Set(df, scale)), df, out + i);
      }
      for (; i < n; ++i) out[i] = e4m3_to_float(float_to_e4m3(to_float(x[i]) * inverse)) * scale;
    }
    for (i = n; i < kAct8Group; ++i) out[i] = 0.0f;
#if HWY_TARGET == HWY_AVX3_DL
    store_units(out, kAct8Group, units);
#endif
  }
}

#if HWY_TARGET == HWY_AVX3_DL
void expand_bf16(const bf16* x, int64_t K, float* units) {
  const DU du;
  int64_t i = 0;
  for (; i + 32 <= K; i += 32) {
    const VU pair = hn::LoadU(du, reinterpret_cast<const uint32_t*>(x + i));
    hn::StoreU(hn::BitCast(DF(), hn::RotateRight<16>(pair)), DF(), units + i / 2);
  }
  for (const int64_t padded = ceil_div(K, kTileK) * kTileK; i < padded; i += 2) {
    const uint32_t first = i < K ? x[i].bits : 0u, second = i + 1 < K ? x[i + 1].bits : 0u;
    units[i / 2] = bits_to_float(first << 16 | second);
  }
}
#else
void expand_bf16(const bf16* x, int64_t K, float* out) {
  int64_t i = 0;
  for (; i + static_cast<int64_t>(kLanes) <= K; i += static_cast<int64_t>(kLanes)) {
    hn::StoreU(load_bf16(x + i), DF(), out + i);
  }
  for (; i < K; ++i) out[i] = to_float(x[i]);
  for (; i < ceil_div(K, kTileK) * kTileK; ++i) out[i] = 0.0f;
}
#endif

#if HWY_TARGET == HWY_AVX3_DL
// 16 units of a whole panel at a time, and how many units that were.
int64_t transpose_panel(const float* x, int64_t stride, int64_t n, float* out) {
  static_assert(kPanels.most == 4);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16, x += 16, out += 64) {
    const auto row = [&](int64_t r) HWY_ATTR { return _mm512_loadu_si512(x + r * stride); };
    const __m512i a = row(0), b = row(1), c = row(2), d = row(3);
    const __m512i ab = _mm512_unpacklo_epi32(a, b), AB = _mm512_unpackhi_epi32(a, b);
    const __m512i cd = _mm512_unpacklo_epi32(c, d), CD = _mm512_unpackhi_epi32(c, d);
    // Of unit 0 (1, 2, 3) of every four the four rows; then whole fours.
    const __m512i u0 = _mm512_unpacklo_epi64(ab, cd), u1 = _mm512_unpackhi_epi64(ab, cd);
    const __m512i u2 = _mm512_unpacklo_epi64(AB, CD), u3 = _mm512_unpackhi_epi64(AB, CD);
    const __m512i even01 = _mm512_shuffle_i32x4(u0, u1, 0x88), odd01 = _mm512_shuffle_i32x4(u0, u1, 0xdd);
    const __m512i even23 = _mm512_shuffle_i32x4(u2, u3, 0x88), odd23 = _mm512_shuffle_i32x4(u2, u3, 0xdd);
    _mm512_storeu_si512(out, _mm512_shuffle_i32x4(even01, even23, 0x88));
    _mm512_storeu_si512(out + 16, _mm512_shuffle_i32x4(odd01, odd23, 0x88));
    _mm512_storeu_si512(out + 32, _mm512_shuffle_i32x4(even01, even23, 0xdd));
    _mm512_storeu_si512(out + 48, _mm512_shuffle_i32x4(odd01, odd23, 0xdd));
  }
  return i;
}
#endif

void transpose(const float* x, int64_t stride, int64_t rows, int64_t n, float* out) {
#if HWY_TARGET == HWY_AVX3_DL
  if (rows == kPanels.most) {
    const int64_t whole = transpose_panel(x, stride, n, out);
    x += whole, n -= whole, out += whole * rows;
  }
#endif
  int64_t done = 0;  // rows
#if HWY_TARGET != HWY_SCALAR
  const hn::Full128<float> d;
  for (; done + 4 <= rows; done += 4) {
    const float* from = x + done * stride;
    float* to = out + done;
    for (int64_t i = 0; i + 4 <= n; i += 4, from += 4, to += 4 * rows) {
      const auto a = hn::LoadU(d, from), b = hn::LoadU(d, from + stride);
      const auto e = hn::LoadU(d, from + 2 * stride), f = hn::LoadU(d, from + 3 * stride);
      const auto ab = hn::InterleaveLower(d, a, b), AB = hn::InterleaveUpper(d, a, b);
      const auto ef = hn::InterleaveLower(d, e, f), EF = hn::InterleaveUpper(d, e, f);
      hn::StoreU(hn::ConcatLowerLower(d, ef, ab), d, to);
      hn::StoreU(hn::ConcatUpperUpper(d, ef, ab), d, to + rows);
      hn::StoreU(hn::ConcatLowerLower(d, EF, AB), d, to + 2 * rows);
      hn::StoreU(hn::ConcatUpperUpper(d, EF, AB), d, to + 3 * rows);
    }
  }
  const hn::Full64<float> pair;
  for (; done + 2 <= rows; done += 2) {
    const float* from = x + done * stride;
    float* to = out + done;
    for (int64_t i = 0; i + 4 <= n; i += 4, from += 4, to += 4 * rows) {
      const auto a = hn::LoadU(d, from), b = hn::LoadU(d, from + stride);
      const auto low = hn::InterleaveLower(d, a, b), high = hn::InterleaveUpper(d, a, b);
      hn::StoreU(hn::LowerHalf(pair, low), pair, to);
      hn::StoreU(hn::UpperHalf(pair, low), pair, to + rows);
      hn::StoreU(hn::LowerHalf(pair, high), pair, to + 2 * rows);
      hn::StoreU(hn::UpperHalf(pair, high), pair, to + 3 * rows);
    }
  }
#endif
  for (; done < rows; ++done) {
    for (int64_t i = 0; i < n; ++i) out[i * rows + done] = x[done * stride + i];
  }
}

HWY_INLINE VF swiglu_one(VF a, VF u, float limit, float weight) {
  const DF df;
  // Comparisons rather than Min and Max: a NaN has to come through.
  const VF top = hn::Set(df, limit), bottom = hn::Set(df, -limit);
  a = rounded_bf16(a);
  a = hn::IfThenElse(hn::Gt(a, top), top, a);
  u = rounded_bf16(u);
  u = hn::IfThenElse(hn::Gt(u, top), top, hn::IfThenElse(hn::Lt(u, bottom), bottom, u));
  const VF one = hn::Set(df, 1.0f);
  const VF silu = hn::Div(a, hn::Add(one, hn::Exp(df, hn::Neg(a))));
  return hn::Mul(hn::Mul(silu, u), hn::Set(df, weight));
}

// n is a multiple of 16.
void swiglu(const float* a, const float* u, int64_t n, float limit, float weight, bf16* h) {
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(kLanes)) {
    store_bf16(swiglu_one(hn::LoadU(DF(), a + i), hn::LoadU(DF(), u + i), limit, weight), h + i);
  }
}

void add_rounded(const float* x, int64_t n, float* sum) {
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(kLanes)) {
    const VF v = rounded_bf16(hn::LoadU(DF(), x + i));
    hn::StoreU(hn::Add(hn::LoadU(DF(), sum + i), v), DF(), sum + i);
  }
}

LinearKernels linear_table() {
  return {.unit_values = kUnitValues,
          .panels = kPanels,
          .multiply = multiply,
          .expand_act8 = expand_act8,
          .expand_bf16 = expand_bf16,
          .transpose = transpose,
          .round_bf16 = round_bf16_array,
          .swiglu = swiglu,
          .add_rounded = add_rounded};
}

}  // namespace dsv4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dsv4::cpu {
HWY_EXPORT(linear_table);
LinearKernels linear_kernels() { return HWY_DYNAMIC_DISPATCH(linear_table)(); }
}  // namespace dsv4::cpu
#endif
