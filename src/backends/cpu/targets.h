// Which instruction sets the vector code is compiled for. Include before <hwy/foreach_target.h>.
//   AVX-512 with VBMI and BF16, AVX-512 (F BW CD DQ VL), AVX2 (with FMA, F16C), NEON, and portable code.
// Left out: SSSE3 and SSE4 (no machine that could hold the model), and targets without a fixed vector
// length, for which a tile's registers cannot be declared.
//
// The first is highway's AVX3_DL, whose detection lacks AVX512_BF16 in version 1.0: select.cc asks for
// that too before it offers the target. A file that gains nothing from BF16 defines DSV4_CPU_NO_BF16
// and is compiled once less.
#ifndef DSV4_BACKENDS_CPU_TARGETS_H_
#define DSV4_BACKENDS_CPU_TARGETS_H_

#define HWY_WANT_AVX3_DL
#include <hwy/detect_targets.h>

#undef HWY_DISABLED_TARGETS
#ifdef DSV4_CPU_NO_BF16
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#else
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#endif

#endif
