// What this machine can do at most, measured in the same run as everything that is compared with
// it.
#pragma once

#include <cstdint>
#include <string>

#include "base/thread_pool.h"
#include "dsv4/status.h"

namespace dsv4::bench {

struct Peaks {
  double read_bytes_per_s = 0.0;  // all threads, from memory
  double flops_per_s = 0.0;       // all threads, FP32 fused multiply-adds from registers; 1 FMA = 2
  std::string isa;                // of the vector code that measured
  int threads = 0;
};

// Takes about two seconds and 512 MiB.
Result<Peaks> measure_peaks(ThreadPool& pool);

// Bytes of the last-level cache, 64 MiB where the system does not say.
int64_t last_level_cache();

}  // namespace dsv4::bench
