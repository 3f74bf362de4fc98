#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <set>

#include "base/str.h"

namespace dsv4 {
namespace {

constexpr int kMaxThreads = 1024;
// How long a worker looks for work before it sleeps: longer than the gap between two ops of a decode
// step, short against a scheduler's time slice.
constexpr std::chrono::microseconds kSpin{50};

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// CPUs' worth of time that the cgroup grants; 0 = no limit seen.
int cgroup_cpus() {
  long long quota = 0, period = 0;
  const std::string v2 = first_line("/sys/fs/cgroup/cpu.max");  // "max 100000" or "150000 100000"
  if (!v2.empty()) {
    const size_t space = v2.find(' ');
    quota = std::atoll(v2.c_str());
    period = space == std::string::npos ? 0 : std::atoll(v2.c_str() + space);
  } else {
    quota = std::atoll(first_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").c_str());
    period = std::atoll(first_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us").c_str());
  }
  if (quota <= 0 || period <= 0) return 0;
  return static_cast<int>(std::min<long long>((quota + period - 1) / period, kMaxThreads));
}

}  // namespace

std::vector<int> usable_cpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(static_cast<size_t>(cpu), &set)) continue;
      // Two hardware threads of one core share its vector units and its path to memory.
      const std::string topology = cat("/sys/devices/system/cpu/cpu", cpu, "/topology/");
      const std::string core = first_line(topology + "core_id");
      const std::string key = core.empty() ? cat("cpu", cpu)
                                           : cat(first_line(topology + "physical_package_id"), "/", core);
      if (cores.insert(key).second) cpus.push_back(cpu);
    }
  }
  if (cpus.empty()) {
    const unsigned n = std::max(1u, std::thread::hardware_concurrency());
    for (unsigned cpu = 0; cpu < n; ++cpu) cpus.push_back(static_cast<int>(cpu));
  }
  const int limit = cgroup_cpus();
  if (limit > 0 && cpus.size() > static_cast<size_t>(limit)) cpus.resize(static_cast<size_t>(limit));
  return cpus;
}

Result<int> threads_from_environment() {
  const char* text = std::getenv("DSV4_THREADS");
  if (!text || !*text) return 0;
  char* end = nullptr;
  const long n = std::strtol(text, &end, 10);
  if (*end || n < 1 || n > kMaxThreads) {
    return Status(Code::kInvalidArgument, cat("DSV4_THREADS: expected a number of threads in 1..",
                                              kMaxThreads, ", found \"", text, "\"; unset it for one per core"));
  }
  return static_cast<int>(n);
}

ThreadPool::ThreadPool(int threads) {
  const std::vector<int> cpus = usable_cpus();
  const int cpu_count = static_cast<int>(cpus.size());
  threads_ = std::clamp(threads > 0 ? threads : cpu_count, 1, kMaxThreads);
  // Spinning with fewer CPUs than workers keeps the one that is waited for from running.
  spin_ = threads_ <= cpu_count;
  parts_ = std::vector<Part>(static_cast<size_t>(threads_));
  for (int i = 1; i < threads_; ++i) {
    workers_.emplace_back([this, i] { work(i); });
    if (spin_) {
      cpu_set_t set;
      CPU_ZERO(&set);
      CPU_SET(static_cast<size_t>(cpus[static_cast<size_t>(i)]), &set);
      pthread_setaffinity_np(workers_.back().native_handle(), sizeof set, &set);
    }
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& t : workers_) t.join();
}

void ThreadPool::await_change(const std::atomic<uint32_t>& value, uint32_t old) const {
  if (spin_) {
    const auto begin = std::chrono::steady_clock::now();
    do {
      for (int i = 0; i < 64; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
        relax();
      }
    } while (std::chrono::steady_clock::now() - begin < kSpin);
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

void ThreadPool::take_parts(uint32_t generation, int own) {
  for (int i = 0; i < threads_; ++i) {
    const int part = own + i < threads_ ? own + i : own + i - threads_;
    uint32_t before = generation - 1;
    std::atomic<uint32_t>& begun = parts_[static_cast<size_t>(part)].begun;
    // Looked at first: what another took is not worth its cache line.
    if (begun.load(std::memory_order_relaxed) != before ||
        !begun.compare_exchange_strong(before, generation, std::memory_order_acq_rel)) {
      continue;
    }
    task_(context_, part);
    const uint32_t runs = finished_.load(std::memory_order_relaxed);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      finished_.store(runs + 1, std::memory_order_release);
      finished_.notify_all();
      return;
    }
  }
}

void ThreadPool::run_erased(Task task, void* context) {
  const std::lock_guard<std::mutex> lock(callers_);
  if (threads_ == 1) {
    task(context, 0);
    return;
  }
  task_ = task;
  context_ = context;
  running_.store(threads_, std::memory_order_relaxed);
  const uint32_t runs = finished_.load(std::memory_order_relaxed);
  const uint32_t generation = generation_.fetch_add(1, std::memory_order_release) + 1;
  generation_.notify_all();
  take_parts(generation, 0);
  await_change(finished_, runs);
}

void ThreadPool::work(int worker) {
  uint32_t seen = 0;
  for (;;) {
    await_change(generation_, seen);
    if (stop_.load()) return;
    seen = generation_.load(std::memory_order_acquire);
    take_parts(seen, worker);
  }
}

}  // namespace dsv4
