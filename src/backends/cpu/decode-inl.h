// From packed weights to floats in registers: one struct per format. Values are exact; a format's
// constant power of two may be left to its scale.
#if defined(DSV4_CPU_DECODE_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef DSV4_CPU_DECODE_INL
#undef DSV4_CPU_DECODE_INL
#else
#define DSV4_CPU_DECODE_INL
#endif

#include "backends/cpu/simd-inl.h"
#include "backends/cpu/tiles.h"

HWY_BEFORE_NAMESPACE();
namespace dsv4::cpu::HWY_NAMESPACE {

// 16 UE8M0 bytes -> 2^(b-127); byte 0 is subnormal, byte 255 NaN.
HWY_INLINE V16 ue8m0_scales(const uint8_t* bytes) {
  const DU du;
  V16 r;
  DSV4_UNROLL
  for (size_t i = 0; i < kParts; ++i) {
    const VU b = hn::PromoteTo(du, hn::LoadU(DB(), bytes + i * kLanes));
    const VU bits = hn::Max(hn::ShiftLeft<23>(b), hn::Set(du, 0x00400000u));
    const auto nan = hn::Eq(b, hn::Set(du, 255u));
    r.v[i] = hn::BitCast(DF(), hn::IfThenElse(nan, hn::Set(du, 0x7fc00000u), bits));
  }
  return r;
}

// An E4M3 code in the high byte of each half word, moved into place as an FP16: value * 2^-8. FP16 has
// exponent range enough for subnormal codes, so nothing here meets a subnormal FP32, which would cost
// hundreds of cycles.
HWY_INLINE VF e4m3_high(hn::Vec<DH> code) {
  const hn::RebindToSigned<DH> ds;
  const auto shifted = hn::ShiftRight<1>(hn::BitCast(ds, code));
  const auto bits = hn::And(shifted, hn::Set(ds, static_cast<int16_t>(-0x4080)));  // 0xbf80
  return hn::PromoteTo(DF(), hn::BitCast(hn::Rebind<hwy::float16_t, DF>(), bits));
}

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

// Every format: kGroup values of K make one partial sum; kStep of them lie together in memory.
//   load(block, step)              the codes of values step*kStep ... of K
//   take(codes, i)                 value i of them; called with i = 0, 1, ... kStep-1 in turn
//   scale(block, group, global)    per row

struct Fp4Values {
  static constexpr int kGroup = 16;
  static constexpr int kStep = 8;
  static constexpr int64_t kStepBytes = 64;
  struct Codes {
    VU v[kParts];
  };
  static HWY_INLINE Codes load(const uint8_t* block, int step) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(block) + step * kTileRows;
    Codes c;
    DSV4_UNROLL
    for (size_t i = 0; i < kParts; ++i) c.v[i] = hn::LoadU(DU(), words + i * kLanes);
    return c;
  }
  static HWY_INLINE V16 take(Codes& c, int) {
    V16 r;
    DSV4_UNROLL
    for (size_t i = 0; i < kParts; ++i) {
      r.v[i] = e2m1_low_nibble(c.v[i]);
      c.v[i] = hn::ShiftRight<4>(c.v[i]);
    }
    return r;
  }
};

struct Mxfp4 : Fp4Values {
  static constexpr WeightFormat kFormat = WeightFormat::kMxfp4;
  static HWY_INLINE V16 scale(const uint8_t* block, int group, float) {
    return ue8m0_scales(block + block_value_bytes(kFormat) + group / 2 * kTileRows);
  }
};

struct Nvfp4 : Fp4Values {
  static constexpr WeightFormat kFormat = WeightFormat::kNvfp4;
  static HWY_INLINE V16 scale(const uint8_t* block, int group, float global) {
    const uint8_t* codes = block + block_value_bytes(kFormat) + group * kTileRows;
    V16 r;
    DSV4_UNROLL
    for (size_t i = 0; i < kParts; ++i) {
      const auto code = hn::PromoteTo(DH(), hn::LoadU(DB(), codes + i * kLanes));
      const VF s = hn::Mul(e4m3_high(hn::ShiftLeft<8>(code)), hn::Set(DF(), 256.0f));
      r.v[i] = hn::Mul(s, hn::Set(DF(), global));
    }
    return r;
  }
};

struct Fp8 {
  static constexpr WeightFormat kFormat = WeightFormat::kFp8Tile128;
  static constexpr int kGroup = 32;
  static constexpr int kStep = 2;
  static constexpr int64_t kStepBytes = 32;
  struct Codes {
    hn::Vec<DH> v[kParts];
  };
  static HWY_INLINE Codes load(const uint8_t* block, int step) {
    const uint16_t* pairs = reinterpret_cast<const uint16_t*>(block) + step * kTileRows;
    Codes c;
    DSV4_UNROLL
    for (size_t i = 0; i < kParts; ++i) c.v[i] = hn::LoadU(DH(), pairs + i * kLanes);
    return c;
  }
  static HWY_INLINE V16 take(Codes& c, int index) {
    V16 r;
    DSV4_UNROLL
    for (size_t i = 0; i < kParts; ++i) r.v[i] = e4m3_high(index == 0 ? hn::ShiftLeft<8>(c.v[i]) : c.v[i]);
    return r;
  }
  static HWY_INLINE V16 scale(const uint8_t* block, int, float) {
    V16 s = ue8m0_scales(block + block_value_bytes(kFormat));
    DSV4_UNROLL
    for (size_t i = 0; i < kParts; ++i) s.v[i] = hn::Mul(s.v[i], hn::Set(DF(), 256.0f));
    return s;
  }
};

struct Bf16 {
  static constexpr WeightFormat kFormat = WeightFormat::kBf16;
  static constexpr int kGroup = 32;
  static constexpr int kStep = 1;
  static constexpr int64_t kStepBytes = 32;
  using Codes = const bf16*;
  static HWY_INLINE Codes load(const uint8_t* block, int step) {
    return reinterpret_cast<const bf16*>(block) + step * kTileRows;
  }
  static HWY_INLINE V16 take(Codes values, int) {
    V16 r;
    DSV4_UNROLL
    for (size_t i = 0; i < kParts; ++i) r.v[i] = load_bf16(values + i * kLanes);
    return r;
  }
  static HWY_INLINE V16 scale(const uint8_t*, int, float) { return set16(1.0f); }
};

struct F32 {
  static constexpr WeightFormat kFormat = WeightFormat::kF32;
  static constexpr int kGroup = 32;
  static constexpr int kStep = 1;
  static constexpr int64_t kStepBytes = 64;
  using Codes = const float*;
  static HWY_INLINE Codes load(const uint8_t* block, int step) {
    return reinterpret_cast<const float*>(block) + step * kTileRows;
  }
  static HWY_INLINE V16 take(Codes values, int) { return load16(values); }
  static HWY_INLINE V16 scale(const uint8_t*, int, float) { return set16(1.0f); }
};

}  // namespace dsv4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
