// ThreadPool: fork and join with a fixed number of workers, for loops that last microseconds. Worker 0
// is the caller. Workers wait by spinning briefly, then sleep, so an idle pool costs nothing. On a machine
// that is shared with other work a worker may be late by a time slice of the scheduler; whoever is done
// with its own part takes the parts that nobody has begun, so a run waits only for parts under way.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "dsv4/status.h"

namespace dsv4 {

struct IndexRange {
  int64_t begin = 0, end = 0;
};

// Part `index` of `parts` of 0..n-1: contiguous, in order, sizes differ by at most one.
inline IndexRange split_range(int64_t n, int64_t parts, int64_t index) {
  const int64_t each = n / parts, extra = n % parts;
  const int64_t begin = index * each + (index < extra ? index : extra);
  return {begin, begin + each + (index < extra ? 1 : 0)};
}

// The CPUs this process may use well: its affinity mask, one per physical core, no more than the
// cgroup's CPU quota.
std::vector<int> usable_cpus();

// $DSV4_THREADS when it is set, else 0 (automatic).
Result<int> threads_from_environment();

class ThreadPool {
 public:
  // threads == 0: one per usable CPU. More than the usable CPUs is allowed (tests do it); workers are
  // pinned only when each gets a CPU of its own.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // f(part) once for each part 0 .. threads-1, at once as far as the workers are there; returns when all
  // are done, and what one run wrote the next reads. Parts must not wait for each other. Not from inside
  // f. One caller at a time; others wait.
  template <class F>
  void run(F&& f) {
    run_erased([](void* context, int part) { (*static_cast<std::remove_reference_t<F>*>(context))(part); },
               const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  using Task = void (*)(void* context, int part);
  void run_erased(Task task, void* context);
  void work(int worker);
  // Runs parts own, own + 1, ... of this generation that nobody has begun.
  void take_parts(uint32_t generation, int own);
  void await_change(const std::atomic<uint32_t>& value, uint32_t old) const;

  int threads_ = 1;
  bool spin_ = true;
  std::mutex callers_;
  Task task_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};  // one more for each run
  alignas(64) std::atomic<int> running_{0};          // parts that are not done
  alignas(64) std::atomic<uint32_t> finished_{0};    // runs that are done
  // The last generation in which somebody began the part. Only one generation on may it be begun again:
  // a worker that wakes late finds the part taken, and while a part is its own the task stays the same.
  struct alignas(64) Part {
    std::atomic<uint32_t> begun{0};
  };
  std::vector<Part> parts_;
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace dsv4
