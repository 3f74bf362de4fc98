// The CPU backend: vector code for the instruction set found at run time, one pool of threads, weights
// packed so that every result is the same for any number of threads and any batch around a row.
#pragma once

#include <memory>
#include <string>

#include "dsv4/status.h"
#include "ops/backend.h"

namespace dsv4 {

struct CpuOptions {
  int threads = 0;  // 0: $DSV4_THREADS, else one per usable core
  std::string isa;  // "": $DSV4_CPU_ISA, else the best of the machine; avx512_bf16, avx512, avx2, neon, scalar
};

Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuOptions& options = {});

}  // namespace dsv4
