// From packed weights to units in registers (simd-inl.h): one struct per format. Values are exact; a
// format's constant power of two may be left to its scale.
#if defined(DSV4_CPU_DECODE_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef DSV4_CPU_DECODE_INL
#undef DSV4_CPU_DECODE_INL
#else
#define DSV4_CPU_DECODE_INL
#endif

#include <array>

#include "backends/cpu/simd-inl.h"
#include "backends/cpu/tiles.h"

HWY_BEFORE_NAMESPACE();
namespace dsv4::cpu::HWY_NAMESPACE {

// A line as it is: one word per row.
struct Words {
  VU v[kParts];
};

HWY_INLINE Words load_words(const uint8_t* line) {
  Words w;
  DSV4_UNROLL
  for (size_t i = 0; i < kParts; ++i) {
    w.v[i] = hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(line) + i * kLanes);
  }
  return w;
}

// UE8M0 -> 2^(b-127); 0 is subnormal, 255 NaN.
HWY_INLINE V16 ue8m0(const Words& b) {
  const DU du;
  V16 r;
  DSV4_UNROLL
  for (size_t i = 0; i < kParts; ++i) {
    const VU bits = hn::Max(hn::ShiftLeft<23>(b.v[i]), hn::Set(du, 0x00400000u));
    const auto nan = hn::Eq(b.v[i], hn::Set(du, 255u));
    r.v[i] = hn::BitCast(DF(), hn::IfThenElse(nan, hn::Set(du, 0x7fc00000u), bits));
  }
  return r;
}

// An E4M3 code in the high byte of each half word, moved into place as an FP16: value * 2^-8. FP16 has
// exponent range enough for subnormal codes, so nothing here meets a subnormal FP32, which would cost
// hundreds of cycles. The two NaN codes, which `pack` refuses, would come out as +-480.
HWY_INLINE VF e4m3_high(hn::Vec<DH> code) {
  const hn::RebindToSigned<DH> ds;
  const auto shifted = hn::ShiftRight<1>(hn::BitCast(ds, code));
  const auto bits = hn::And(shifted, hn::Set(ds, static_cast<int16_t>(-0x4080)));  // 0xbf80
  return hn::PromoteTo(DF(), hn::BitCast(hn::Rebind<hwy::float16_t, DF>(), bits));
}

#if HWY_TARGET != HWY_AVX3_DL
// The low nibble of each word as E2M1.
HWY_INLINE VF e2m1_low_nibble(VU word) {
  const DU du;
#if HWY_TARGET == HWY_AVX3
  // The permutation reads the low four bits of an index and ignores the others.
  alignas(64) static constexpr float kTable[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                                   -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
  (void)du;
  return VF{_mm512_permutexvar_ps(word.raw, hn::Load(DF(), kTable).raw)};
#else
  const VU sign = hn::And(hn::ShiftLeft<28>(word), hn::Set(du, 0x80000000u));
#if HWY_TARGET == HWY_AVX2
  alignas(32) static constexpr float kTable[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  const VF mag = VF{_mm256_permutevar8x32_ps(hn::Load(DF(), kTable).raw, word.raw)};
#else
  const VU code = hn::And(word, hn::Set(du, 7u));
  // Codes from 2 on are normal numbers: their bits, put where FP32 has them.
  const VF normal = hn::BitCast(DF(), hn::Add(hn::ShiftLeft<22>(code), hn::Set(du, 126u << 23)));
  const VF small = hn::Mul(hn::ConvertTo(DF(), hn::BitCast(DI(), code)), hn::Set(DF(), 0.5f));
  const auto is_small = hn::Lt(hn::BitCast(DI(), code), hn::Set(DI(), 2));
  const VF mag = hn::IfThenElse(hn::RebindMask(DF(), is_small), small, normal);
#endif
  return hn::BitCast(DF(), hn::Or(hn::BitCast(du, mag), sign));
#endif
}
#endif

// Every format: kLineUnits units of K in a line (tiles.h), and
//   load(line)                            16 rows of it
//   take(codes, i)                        unit i; called with i = 0, 1, ... kLineUnits-1 in turn
//   take(codes, i, fold)                  times its scale, fold.set(bytes) before; for pairs only
//   Scales<kFold>(block, global)          of its groups in turn, kFold as in Tiles::scales_fold:
//     take(g, half)                       per row, of the g'th group from here
//     bytes(g, half)                      the same as UE8M0, where that is the format
//     advance<n>()                        n groups on
// kAhead: gemv requests packed weights this far ahead, into the second-level cache.

#if HWY_TARGET == HWY_AVX3_DL
// The exponents of scales 2^(b-127), where both BF16 of a lane have theirs.
HWY_INLINE __m512i bf16_exponents(const Words& bytes) {
  const __m512i b = bytes.v[0].raw;
  const __m512i both = _mm512_or_si512(b, _mm512_slli_epi32(b, 16));
  return _mm512_slli_epi16(_mm512_sub_epi16(both, _mm512_set1_epi16(127)), 7);
}
#endif

template <WeightFormat kWeights>
struct Lines {
  struct Fold {};
  static constexpr WeightFormat kFormat = kWeights;
  static constexpr int kGroup = static_cast<int>(group_values(kWeights));
  static constexpr int kLineUnits = static_cast<int>(line_values(kWeights)) / kUnitValues;
};

template <WeightFormat kWeights>
struct Fp4 : Lines<kWeights> {
  static constexpr int64_t kAhead = 6656;
  using Codes = Words;
  static HWY_INLINE Codes load(const uint8_t* line) { return load_words(line); }
#if HWY_TARGET == HWY_AVX3_DL
  // BF16 bits, kRaised higher but for the zeros. The permutation reads the low five bits of an index; the
  // highest of them is foreign.
  template <int kRaised>
  static HWY_INLINE __m512i look_up(Codes& c, int index) {
    static constexpr auto kTable = [] {
      constexpr uint16_t kMagnitude[8] = {0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0};
      std::array<uint16_t, 32> table{};
      for (size_t i = 0; i < 32; ++i) {
        if (i % 8) table[i] = static_cast<uint16_t>(kMagnitude[i % 8] + kRaised + i % 16 / 8 * 0x8000);
      }
      return table;
    }();
    const __m512i values = _mm512_permutexvar_epi16(c.v[0].raw, _mm512_loadu_si512(kTable.data()));
    if (index + 1 < Fp4::kLineUnits) c.v[0].raw = _mm512_srli_epi16(c.v[0].raw, 4);
    return values;
  }
  static HWY_INLINE V16 take(Codes& c, int index) { return V16{{VF{_mm512_castsi512_ps(look_up<0>(c, index))}}}; }
  // Bits that are raised by more than any exponent (Tiles::scales_fold) are lowered by what the scale is
  // less: a saturating subtraction leaves zeros what they are.
  static constexpr int kRaised = 0x3c00;
  struct Fold {
    __m512i less;
    HWY_INLINE void set(const Words& bytes) {
      less = _mm512_sub_epi16(_mm512_set1_epi16(kRaised), bf16_exponents(bytes));
    }
  };
  static HWY_INLINE V16 take(Codes& c, int index, const Fold& fold) {
    return V16{{VF{_mm512_castsi512_ps(_mm512_subs_epu16(look_up<kRaised>(c, index), fold.less))}}};
  }
#else
  static HWY_INLINE V16 take(Codes& c, int index) {
    const int shift = index / 2 * 4 + (index % 2 == 0 ? 16 : 0);
    V16 r;
    DSV4_UNROLL
    for (size_t i = 0; i < kParts; ++i) r.v[i] = e2m1_low_nibble(hn::ShiftRightSame(c.v[i], shift));
    return r;
  }
#endif
};

struct Mxfp4 : Fp4<WeightFormat::kMxfp4> {
  template <bool kFold>
  struct Scales {
    Words word[2];
    HWY_INLINE Scales(const uint8_t* block, float) {
      const uint8_t* scales = scales_of(kFormat, block);
      for (int half = 0; half < 2; ++half) word[half] = load_words(scales + scale_at(kFormat, 0, half * kHalfRows));
    }
    // Above the byte are those of later groups.
    HWY_INLINE Words word_of(int g, int half) const {
      Words w = word[half];
      DSV4_UNROLL
      for (size_t i = 0; i < kParts; ++i) {
        if (g >= 2) w.v[i] = hn::ShiftRight<8>(w.v[i]);
      }
      return w;
    }
    HWY_INLINE Words bytes(int g, int half) const {
      Words b = word_of(g, half);
      DSV4_UNROLL
      for (size_t i = 0; i < kParts; ++i) b.v[i] = hn::And(b.v[i], hn::Set(DU(), 255u));
      return b;
    }
    HWY_INLINE V16 take(int g, int half) const {
      if constexpr (!kFold) return ue8m0(bytes(g, half));
      const Words w = word_of(g, half);
      V16 r;
      DSV4_UNROLL
      for (size_t i = 0; i < kParts; ++i) {
        r.v[i] = hn::BitCast(DF(), hn::And(hn::ShiftLeft<23>(w.v[i]), hn::Set(DU(), 0x7f800000u)));
      }
      return r;
    }
    template <int kGroups>
    HWY_INLINE void advance() {
      for (Words& w : word) {
        DSV4_UNROLL
        for (size_t i = 0; i < kParts; ++i) w.v[i] = hn::ShiftRight<kGroups / 2 * 8>(w.v[i]);
      }
    }
  };
};

struct Nvfp4 : Fp4<WeightFormat::kNvfp4> {
  template <bool>
  struct Scales {
    const uint8_t* at;
    float factor;
    HWY_INLINE Scales(const uint8_t* block, float global)
        : at(scales_of(kFormat, block)), factor(256.0f * global) {}
    HWY_INLINE V16 take(int g, int half) const {
      const uint16_t* codes = reinterpret_cast<const uint16_t*>(at + g / 2 * kLineBytes) + half * kHalfRows;
      V16 r;
      DSV4_UNROLL
      for (size_t i = 0; i < kParts; ++i) {
        auto code = hn::LoadU(DH(), codes + i * kLanes);
        if (g % 2 == 1) code = hn::ShiftLeft<8>(code);
        r.v[i] = hn::Mul(e4m3_high(code), hn::Set(DF(), factor));
      }
      return r;
    }
    template <int kGroups>
    HWY_INLINE void advance() {
      at += kGroups / 2 * kLineBytes;
    }
  };
};

#if HWY_TARGET == HWY_AVX3_DL
// The two bytes of BF16 for every magnitude of E4M3.
struct E4m3Table {
  alignas(64) uint8_t high[128] = {}, low[128] = {};
  constexpr E4m3Table() {
    for (uint32_t code = 0; code < 128; ++code) {
      uint32_t bits = (code << 4) + (120u << 7);
      if (code < 8) {  // code * 2^-9
        const uint32_t top = code >= 4 ? 2 : code >= 2 ? 1 : 0;  // the leading one's place
        bits = code == 0 ? 0 : (118 + top) << 7 | ((code << (7 - top)) & 0x7f);
      }
      if (code == 127) bits = 0x7fc0;
      high[code] = static_cast<uint8_t>(bits >> 8);
      low[code] = static_cast<uint8_t>(bits & 0xff);
    }
  }
};

// Bytes of BF16 for all codes of a line, with the sign.
struct Fp8Codes {
  __m512i high, low;
};

// E4m3Table in registers.
struct Fp8Table {
  __m512i high[2], low[2];

  static HWY_INLINE Fp8Table plain() {
    static constexpr E4m3Table kTable;
    const auto at = [](const uint8_t* p) HWY_ATTR { return _mm512_load_si512(p); };
    return {{at(kTable.high), at(kTable.high + 64)}, {at(kTable.low), at(kTable.low + 64)}};
  }
  // Times a scale of 2^(byte - 127), but for the zero.
  static HWY_INLINE Fp8Table scaled(uint8_t byte) {
    Fp8Table t = plain();
    const __m512i exponent = _mm512_set1_epi16(static_cast<int16_t>((byte - 127) * 128)), mask = _mm512_set1_epi16(255);
    DSV4_UNROLL
    for (int i = 0; i < 2; ++i) {
      __m512i first = _mm512_unpacklo_epi8(t.low[i], t.high[i]), second = _mm512_unpackhi_epi8(t.low[i], t.high[i]);
      first = _mm512_mask_add_epi16(first, i == 0 ? ~__mmask32{1} : ~__mmask32{0}, first, exponent);
      second = _mm512_add_epi16(second, exponent);
      t.low[i] = _mm512_packus_epi16(_mm512_and_si512(first, mask), _mm512_and_si512(second, mask));
      t.high[i] = _mm512_packus_epi16(_mm512_srli_epi16(first, 8), _mm512_srli_epi16(second, 8));
    }
    return t;
  }
};

struct Fp8Lines : Lines<WeightFormat::kFp8Tile128> {
  static constexpr float kFactor = 1.0f;
  using Codes = Fp8Codes;
  static HWY_INLINE Codes load(const uint8_t* line, const Fp8Table& table) {
    __m512i codes = _mm512_loadu_si512(line);
    asm("" : "+v"(codes));  // g++ would load it for each of its uses, and loads are what there is too little of
    const __m512i high = _mm512_permutex2var_epi8(table.high[0], codes, table.high[1]);
    const __m512i sign = _mm512_and_si512(codes, _mm512_set1_epi8(-0x80));
    return {_mm512_or_si512(high, sign), _mm512_permutex2var_epi8(table.low[0], codes, table.low[1])};
  }
  static HWY_INLINE Codes load(const uint8_t* line) { return load(line, Fp8Table::plain()); }
  // Whether a block's scales are all the same, as they are where the published tiles of 128 rows are not cut.
  static HWY_INLINE bool one_scale(const uint8_t* scales) {
    const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales));
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(all, _mm256_set1_epi8(static_cast<char>(*scales)))) == -1;
  }
  static HWY_INLINE V16 take(const Codes& c, int index) {
    const __m512i pair = index == 0 ? _mm512_unpacklo_epi8(c.low, c.high) : _mm512_unpackhi_epi8(c.low, c.high);
    return V16{{VF{_mm512_castsi512_ps(pair)}}};
  }
  struct Fold {
    __m512i exponents;
    HWY_INLINE void set(const Words& bytes) { exponents = bf16_exponents(bytes); }
  };
  static HWY_INLINE V16 take(const Codes& c, int index, const Fold& fold) {
    const __m512i u = _mm512_castps_si512(take(c, index).v[0].raw);
    const __mmask32 some = _mm512_test_epi16_mask(u, _mm512_set1_epi16(0x7fff));
    return V16{{VF{_mm512_castsi512_ps(_mm512_mask_add_epi16(u, some, u, fold.exponents))}}};
  }
};
#else
// Pairs of codes, the first in the high byte.
struct Fp8Codes {
  hn::Vec<DH> pair[2][kParts];
};

// n half words, of which four lie together in every 16 bytes.
template <size_t n>
HWY_INLINE auto load_fours(const uint8_t* p) {
  const hn::CappedTag<uint16_t, n> d;
#if HWY_TARGET != HWY_SCALAR
  if constexpr (n > 4) {
    return hn::Combine(d, load_fours<n / 2>(p + n * 2), load_fours<n / 2>(p));
  } else
#endif
  {
    return hn::LoadU(d, reinterpret_cast<const uint16_t*>(p));
  }
}

struct Fp8Lines : Lines<WeightFormat::kFp8Tile128> {
  static constexpr float kFactor = 256.0f;
  using Codes = Fp8Codes;
  static HWY_INLINE Codes load(const uint8_t* line) {
    Codes c;
    DSV4_UNROLL
    for (size_t i = 0; i < kParts; ++i) {
      const int64_t row = static_cast<int64_t>(i * kLanes);
      for (int upper = 0; upper < 2; ++upper) {
        c.pair[upper][i] = load_fours<kLanes>(line + word_half_at(kFormat, row, upper));
      }
    }
    return c;
  }
  static HWY_INLINE V16 take(const Codes& c, int index) {
    V16 r;
    DSV4_UNROLL
    for (size_t i = 0; i < kParts; ++i) {
      const auto pair = c.pair[index / 2][i];
      r.v[i] = e4m3_high(index % 2 == 0 ? pair : hn::ShiftLeft<8>(pair));
    }
    return r;
  }
};
#endif

struct Fp8 : Fp8Lines {
  static constexpr int64_t kAhead = 6656;
  template <bool>
  struct Scales {
    const uint8_t* at;
    V16 scale[2];
    HWY_INLINE Scales(const uint8_t* block, float) : at(scales_of(kFormat, block)) {
      for (int half = 0; half < 2; ++half) {
        scale[half] = ue8m0(bytes(0, half));
        DSV4_UNROLL
        for (VF& v : scale[half].v) v = hn::Mul(v, hn::Set(DF(), kFactor));
      }
    }
    HWY_INLINE Words bytes(int, int half) const {
      Words b;
      DSV4_UNROLL
      for (size_t i = 0; i < kParts; ++i) {
        b.v[i] = hn::PromoteTo(DU(), hn::LoadU(DB(), at + half * kHalfRows + i * kLanes));
      }
      return b;
    }
    HWY_INLINE V16 take(int, int half) const { return scale[half]; }
    template <int>
    HWY_INLINE void advance() {}
  };
};

struct Bf16 : Lines<WeightFormat::kBf16> {
  static constexpr int64_t kAhead = 2048;
  using Codes = Words;
  static HWY_INLINE Codes load(const uint8_t* line) { return load_words(line); }
  static HWY_INLINE V16 take(const Codes& pairs, int index) {
    const DU du;
    V16 r;
    DSV4_UNROLL
    for (size_t i = 0; i < kParts; ++i) {
      VU pair = pairs.v[i];
      if constexpr (kLineUnits == 2) {
        pair = index == 0 ? hn::And(pair, hn::Set(du, 0xffff0000u)) : hn::ShiftLeft<16>(pair);
      }
      r.v[i] = hn::BitCast(DF(), pair);
    }
    return r;
  }
  template <bool>
  struct Scales {
    HWY_INLINE Scales(const uint8_t*, float) {}
    HWY_INLINE V16 take(int, int) const { return set16(1.0f); }
    template <int>
    HWY_INLINE void advance() {}
  };
};

}  // namespace dsv4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
