// What this machine can do at most, measured in the same run as everything that is compared with
// it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/thread_pool.h"
#include "dsv4/status.h"
#include "ops/backend.h"

namespace dsv4::bench {

struct Peaks {
  double read_bytes_per_s = 0.0;  // all threads, from memory
  double flops_per_s = 0.0;       // all threads, FP32 fused multiply-adds from registers; 1 FMA = 2
  double bf16_flops_per_s = 0.0;  // the same with the BF16 dot instruction, FP32 sums; 0 without one
  std::string isa;                // of the vector code that measured
  int threads = 0;                // 0: a device of its own
  int64_t cache_bytes = 0;        // of the last level

  // What matrices are held to.
  double best_flops_per_s() const { return bf16_flops_per_s > flops_per_s ? bf16_flops_per_s : flops_per_s; }
};

// What a backend says of its own device; nothing where it does not measure itself.
Result<std::optional<Peaks>> device_peaks(Backend& backend);

// Takes about two seconds and 512 MiB.
Result<Peaks> measure_peaks(ThreadPool& pool);

// Bytes of the last-level caches of the CPUs in use, 64 MiB where the system does not say.
int64_t last_level_cache();

}  // namespace dsv4::bench
