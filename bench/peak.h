// What this machine can do at most, measured in the same run as everything that is compared with
// it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "dsv4/status.h"
#include "ops/backend.h"

namespace dsv4::bench {

struct Peaks {
  double read_bytes_per_s = 0.0;  // all threads, from memory: median of 80 pieces
  double best_read_bytes_per_s = 0.0;  // the best of them; 0 for a device of its own
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

// Reads memory as fast as this program can, with as many threads as the cpu backend has and pages as its
// weights have. Where other guests share the memory, the bandwidth moves from one second to the next: what
// is compared with it is measured in turn with it, and median is compared with median.
class ReadMeter {
 public:
  // Holds 512 MiB. 0 threads: one per usable CPU. Chooses the fastest of its loops.
  static Result<std::unique_ptr<ReadMeter>> make(int threads);

  // Reads so many pieces of 64 MiB, each a sample. The pool's threads sleep when it returns.
  void sample(int pieces = 1);
  double best() const;    // bytes per second, of the samples since `restart`
  double median() const;  // the same
  void restart() { rates_.clear(); }
  ThreadPool& pool() { return pool_; }

 private:
  ReadMeter(int threads, std::unique_ptr<float, void (*)(void*)> data);
  double read(int piece, int loop);

  ThreadPool pool_;
  std::unique_ptr<float, void (*)(void*)> data_;
  std::vector<float> sums_;  // of the workers, so that nothing is optimised away
  std::vector<double> rates_;
  int piece_ = 0, loop_ = 0;
};

// Takes about two seconds.
Peaks measure_peaks(ReadMeter& reads);

// Bytes of the last-level caches of the CPUs in use, 64 MiB where the system does not say.
int64_t last_level_cache();

}  // namespace dsv4::bench
