// Choosing an instruction set: highway finds the best that was compiled in and runs here; a name may
// force another.
#include <array>
#include <mutex>

#include "backends/cpu/kernels.h"
#include "backends/cpu/targets.h"
#include "base/str.h"
#include <hwy/targets.h>

namespace dsv4::cpu {
namespace {

struct Isa {
  std::string_view name;
  int64_t target;
  int64_t otherwise = 0;  // for files that are not compiled for it
};

constexpr std::array kIsas = {
#if HWY_ARCH_X86
    Isa{"avx512_bf16", HWY_AVX3_DL, HWY_AVX3}, Isa{"avx512", HWY_AVX3}, Isa{"avx2", HWY_AVX2},
#elif HWY_ARCH_ARM
    Isa{"neon", HWY_NEON},
#endif
    Isa{"scalar", HWY_EMU128 | HWY_SCALAR},
};

std::mutex& highway_mutex() {
  static std::mutex mutex;  // highway's choice of target is global
  return mutex;
}

int64_t runnable() {
  int64_t targets = hwy::SupportedTargets() | HWY_EMU128 | HWY_SCALAR;
#if HWY_ARCH_X86
  // What highway 1.0 does not look for; it has checked that the system saves the registers.
  if (!__builtin_cpu_supports("avx512bf16")) targets &= ~HWY_AVX3_DL;
#endif
  return targets;
}

}  // namespace

std::string isa_names() {
  std::string names;
  for (const Isa& isa : kIsas) {
    if (isa.target & runnable() & (HWY_TARGETS)) names += cat(names.empty() ? "" : ", ", isa.name);
  }
  return names;
}

Result<Kernels> select_kernels(std::string_view name) {
  const std::lock_guard<std::mutex> lock(highway_mutex());
  for (const Isa& isa : kIsas) {
    const int64_t usable = isa.target & runnable() & (HWY_TARGETS);
    if (!usable || (!name.empty() && name != isa.name)) continue;
    hwy::SetSupportedTargetsForTest(usable | isa.otherwise);
    hwy::GetChosenTarget().Update(usable | isa.otherwise);
    Kernels kernels{.isa = isa.name, .linear = linear_kernels(), .rows = row_kernels(),
                    .attention = attention_kernels()};
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().DeInit();
    return kernels;
  }
  return Status(Code::kInvalidArgument,
                cat("DSV4_CPU_ISA: expected one of ", isa_names(), " on this machine, found \"", name,
                    "\"; unset it for the best one"));
}

}  // namespace dsv4::cpu
