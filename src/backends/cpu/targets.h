// Which instruction sets the vector code is compiled for. Include before <hwy/foreach_target.h>.
//   AVX-512 (F BW CD DQ VL), AVX2 (with FMA, F16C), SSE4, NEON, and portable code.
// Left out: SSSE3 (no machine that could hold the model), the AVX-512 supersets (nothing here gains
// from them), and targets without a fixed vector length, for which a tile's registers cannot be
// declared.
#ifndef DSV4_BACKENDS_CPU_TARGETS_H_
#define DSV4_BACKENDS_CPU_TARGETS_H_

#include <hwy/detect_targets.h>

#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#endif
