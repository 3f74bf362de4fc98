// 16 floats, whatever the vector length of the target: kParts native vectors. Included once per
// target; everything lives in the target's own namespace.
#if defined(DSV4_CPU_SIMD_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef DSV4_CPU_SIMD_INL
#undef DSV4_CPU_SIMD_INL
#else
#define DSV4_CPU_SIMD_INL
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "formats/bf16.h"

// AVX512_BF16 for functions of the target that select.cc offers only where it is present.
#if HWY_TARGET == HWY_AVX3_DL
#undef HWY_TARGET_STR
#define HWY_TARGET_STR \
  HWY_TARGET_STR_AVX3 \
  ",vpclmulqdq,avx512vbmi,avx512vbmi2,vaes,avxvnni,avx512bitalg,avx512vpopcntdq,avx512bf16"
#endif

// Loops over the parts of a V16 and over small register blocks must vanish where there are registers;
// portable code would only take minutes to compile.
#undef DSV4_UNROLL
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
#define DSV4_UNROLL
#elif defined(__clang__)
#define DSV4_UNROLL _Pragma("clang loop unroll(full)")
#else
#define DSV4_UNROLL _Pragma("GCC unroll 32")
#endif

HWY_BEFORE_NAMESPACE();
namespace dsv4::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using DH = hn::Rebind<uint16_t, DF>;  // as many half words as DF has lanes
using DB = hn::Rebind<uint8_t, DF>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;

inline constexpr size_t kLanes = hn::MaxLanes(DF());
inline constexpr size_t kParts = 16 / kLanes;

struct V16 {
  VF v[kParts];
};

HWY_INLINE V16 set16(float x) {
  V16 r;
  DSV4_UNROLL
  for (size_t i = 0; i < kParts; ++i) r.v[i] = hn::Set(DF(), x);
  return r;
}

HWY_INLINE V16 load16(const float* p) {
  V16 r;
  DSV4_UNROLL
  for (size_t i = 0; i < kParts; ++i) r.v[i] = hn::LoadU(DF(), p + i * kLanes);
  return r;
}

HWY_INLINE void store16(const V16& x, float* p) {
  DSV4_UNROLL
  for (size_t i = 0; i < kParts; ++i) hn::StoreU(x.v[i], DF(), p + i * kLanes);
}

// a * b + c
HWY_INLINE V16 fma16(const V16& a, const V16& b, const V16& c) {
  V16 r;
  DSV4_UNROLL
  for (size_t i = 0; i < kParts; ++i) r.v[i] = hn::MulAdd(a.v[i], b.v[i], c.v[i]);
  return r;
}

// Matrices are multiplied in units of 32 bits: one FP32 value of K, or two BF16 values, of which the
// high half is the first. The instruction for pairs is two fused multiply-adds with one rounding each,
// high half first, so both kinds of unit add the same numbers in the same order. It takes subnormal
// numbers for zero: only what is below 2^-126 may differ.
#if HWY_TARGET == HWY_AVX3_DL
inline constexpr int kUnitValues = 2;
// a . b + c
HWY_INLINE VF dot(VF a, VF b, VF c) {
  return VF{_mm512_dpbf16_ps(c.raw, (__m512bh)_mm512_castps_si512(a.raw), (__m512bh)_mm512_castps_si512(b.raw))};
}
#else
inline constexpr int kUnitValues = 1;
HWY_INLINE VF dot(VF a, VF b, VF c) { return hn::MulAdd(a, b, c); }
#endif

// A unit in every lane. As an integer: Zen 4 broadcasts those while it loads them, but a float through the
// ports of permutations.
HWY_INLINE VF broadcast(const float* unit) {
  uint32_t bits;
  memcpy(&bits, unit, sizeof bits);
  return hn::BitCast(DF(), hn::Set(DU(), bits));
}

HWY_INLINE V16 dot16(const V16& a, VF unit, const V16& c) {
  V16 r;
  DSV4_UNROLL
  for (size_t i = 0; i < kParts; ++i) r.v[i] = dot(unit, a.v[i], c.v[i]);
  return r;
}

HWY_INLINE VF load_bf16(const bf16* p) {
  const auto half = hn::LoadU(DH(), reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::PromoteTo(DU(), half)));
}

// Rounds to nearest even; the BF16 value's bits in the low half of each lane. A NaN stays one.
HWY_INLINE VU bf16_bits(VF x) {
  const DU du;
  const VU u = hn::BitCast(du, x);
  const VU odd = hn::And(hn::ShiftRight<16>(u), hn::Set(du, 1u));
  const VU rounded = hn::ShiftRight<16>(hn::Add(hn::Add(u, hn::Set(du, 0x7fffu)), odd));
  const VU quiet = hn::Or(hn::ShiftRight<16>(u), hn::Set(du, 0x40u));
  return hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(x)), quiet, rounded);
}

HWY_INLINE void store_bf16(VF x, bf16* p) {
  const auto bits = hn::BitCast(DI(), bf16_bits(x));
  hn::StoreU(hn::DemoteTo(DH(), bits), DH(), reinterpret_cast<uint16_t*>(p));
}

// FP32 value of the nearest BF16.
HWY_INLINE VF rounded_bf16(VF x) { return hn::BitCast(DF(), hn::ShiftLeft<16>(bf16_bits(x))); }

}  // namespace dsv4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
