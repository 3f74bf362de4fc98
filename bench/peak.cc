#include "bench/peak.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <set>
#include <thread>
#include <string>
#include <vector>

#include "base/str.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/peak.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace dsv4::bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Sum of `streams` (1 or 4) runs of n floats each, one behind the other, n a multiple of 256; with `ahead`,
// lines 4 KiB on are requested into the second-level cache. What keeps memory busiest depends on the
// machine's prefetchers.
float sum_floats(const float* data, int64_t n, int streams, bool ahead) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t apart = streams == 1 ? lanes : n, step = streams == 1 ? 4 * lanes : lanes;
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  for (int64_t i = 0; i < n; i += step) {
    if (ahead) {
      const char* next = reinterpret_cast<const char*>(data + i) + 4096;
      for (int64_t b = 0; b < step * 4; b += 64) __builtin_prefetch(next + b, 0, 2);
    }
    s0 = hn::Add(s0, hn::LoadU(d, data + i));
    s1 = hn::Add(s1, hn::LoadU(d, data + i + apart));
    s2 = hn::Add(s2, hn::LoadU(d, data + i + 2 * apart));
    s3 = hn::Add(s3, hn::LoadU(d, data + i + 3 * apart));
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
}

// `rounds` times 12 independent chains of fused multiply-adds; returns the flops done.
double multiply_add(int64_t rounds, float* sink) {
  const hn::ScalableTag<float> d;
  const auto a = hn::Set(d, 0.999f), b = hn::Set(d, 0.001f);
  // Different starts: a compiler runs equal chains once, and counts them all.
  auto c0 = hn::Set(d, 1.0f), c1 = hn::Set(d, 2.0f), c2 = hn::Set(d, 3.0f), c3 = hn::Set(d, 4.0f);
  auto c4 = hn::Set(d, 5.0f), c5 = hn::Set(d, 6.0f), c6 = hn::Set(d, 7.0f), c7 = hn::Set(d, 8.0f);
  auto c8 = hn::Set(d, 9.0f), c9 = hn::Set(d, 10.0f), c10 = hn::Set(d, 11.0f), c11 = hn::Set(d, 12.0f);
  for (int64_t i = 0; i < rounds; ++i) {
    c0 = hn::MulAdd(c0, a, b);
    c1 = hn::MulAdd(c1, a, b);
    c2 = hn::MulAdd(c2, a, b);
    c3 = hn::MulAdd(c3, a, b);
    c4 = hn::MulAdd(c4, a, b);
    c5 = hn::MulAdd(c5, a, b);
    c6 = hn::MulAdd(c6, a, b);
    c7 = hn::MulAdd(c7, a, b);
    c8 = hn::MulAdd(c8, a, b);
    c9 = hn::MulAdd(c9, a, b);
    c10 = hn::MulAdd(c10, a, b);
    c11 = hn::MulAdd(c11, a, b);
  }
  const auto low = hn::Add(hn::Add(hn::Add(c0, c1), hn::Add(c2, c3)), hn::Add(c4, c5));
  const auto high = hn::Add(hn::Add(hn::Add(c6, c7), hn::Add(c8, c9)), hn::Add(c10, c11));
  *sink = hn::GetLane(hn::SumOfLanes(d, hn::Add(low, high)));
  return 24.0 * static_cast<double>(rounds) * static_cast<double>(hn::Lanes(d));
}

const char* target() {
  return hwy::TargetName(HWY_TARGET);
}

}  // namespace HWY_NAMESPACE
}  // namespace dsv4::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dsv4::bench {
namespace {

HWY_EXPORT(sum_floats);
HWY_EXPORT(multiply_add);
HWY_EXPORT(target);

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

constexpr size_t kHugePage = size_t{2} << 20;

// As multiply_add, with the instruction that multiplies two BF16 pairs per lane; 0 where there is none.
#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bf16"))) double dot_bf16_avx512(int64_t rounds, float* sink) {
  // 0.5 and 2^-7, twice each.
  const __m512i half = _mm512_set1_epi32(0x3f003f00), small = _mm512_set1_epi32(0x3c003c00);
  // Zen 5 starts two of them a cycle that take six: twelve chains would not keep it busy.
  constexpr int kChains = 24;
  __m512 c[kChains];
  for (int i = 0; i < kChains; ++i) c[i] = _mm512_set1_ps(1.0f + 0.5f * static_cast<float>(i));
  const __m512bh a = (__m512bh)half, b = (__m512bh)small;
  for (int64_t i = 0; i < rounds; ++i) {
    HWY_UNROLL(24)
    for (int j = 0; j < kChains; ++j) c[j] = _mm512_dpbf16_ps(c[j], a, b);
  }
  __m512 sum = c[0];
  for (int i = 1; i < kChains; ++i) sum = _mm512_add_ps(sum, c[i]);
  *sink = _mm512_cvtss_f32(sum);
  return kChains * 2.0 * 32.0 * static_cast<double>(rounds);
}

double dot_bf16(int64_t rounds, float* sink) {
  return __builtin_cpu_supports("avx512bf16") ? dot_bf16_avx512(rounds, sink) : 0.0;
}
#else
double dot_bf16(int64_t, float*) { return 0.0; }
#endif

struct alignas(64) Slot {
  float sum = 0.0f;
  double flops = 0.0;
};

// All threads' rate of work(sink), which returns the flops it did: the best of 20 passes.
template <class Work>
double best_rate(ThreadPool& pool, std::vector<Slot>& slots, const Work& work) {
  double best = 0.0;
  for (int pass = 0; pass < 20; ++pass) {
    const auto begin = std::chrono::steady_clock::now();
    pool.run([&](int worker) {
      Slot& slot = slots[static_cast<size_t>(worker)];
      slot.flops = work(&slot.sum);
    });
    const double seconds = seconds_since(begin);
    double flops = 0.0;
    for (const Slot& slot : slots) flops += slot.flops;
    best = std::max(best, flops / seconds);
  }
  return best;
}

}  // namespace

int64_t last_level_cache() {
  // sysconf adds up what a virtual machine's host has; the kernel knows which cache each CPU has.
  std::set<std::string> seen;
  int64_t bytes = 0;
  for (const int cpu : usable_cpus()) {
    const std::string cache = cat("/sys/devices/system/cpu/cpu", cpu, "/cache/index3/");
    std::ifstream size(cache + "size"), shared(cache + "shared_cpu_list");
    int64_t kib = 0;
    std::string cpus;
    if (size >> kib && shared >> cpus && seen.insert(cpus).second) bytes += kib << 10;
  }
  return bytes > 0 ? bytes : int64_t{64} << 20;
}

namespace {

struct ReadLoop {
  int streams;
  bool ahead;
};
constexpr ReadLoop kLoops[] = {{1, false}, {4, false}, {1, true}};
constexpr int kLoopCount = static_cast<int>(std::size(kLoops));
constexpr int64_t kPieces = 8, kPieceFloats = int64_t{16} << 20;  // of 64 MiB

double middle(std::vector<double> values) {
  if (values.empty()) return 0.0;
  std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
  return values[values.size() / 2];
}

}  // namespace

ReadMeter::ReadMeter(int threads, std::unique_ptr<float, void (*)(void*)> data)
    : pool_(threads), data_(std::move(data)), sums_(static_cast<size_t>(pool_.threads()) * 16) {}

Result<std::unique_ptr<ReadMeter>> ReadMeter::make(int threads) {
  constexpr size_t kBytes = static_cast<size_t>(kPieces * kPieceFloats) * sizeof(float);
  std::unique_ptr<float, void (*)(void*)> data(static_cast<float*>(std::aligned_alloc(kHugePage, kBytes)), &std::free);
  if (!data) {
    return Status(Code::kResourceExhausted, "bench: no 512 MiB of memory to measure the read bandwidth with");
  }
#ifdef MADV_HUGEPAGE
  // As weights have them; without, the walks of page tables are measured too.
  (void)madvise(data.get(), kBytes, MADV_HUGEPAGE);
#endif
  memset(data.get(), 0, kBytes);
  std::unique_ptr<ReadMeter> meter(new ReadMeter(threads, std::move(data)));
  // In turn, so that a change of the machine's bandwidth meets all loops.
  std::vector<double> rates[kLoopCount];
  for (int i = 0; i < 12 * kLoopCount; ++i) rates[i % kLoopCount].push_back(meter->read(i, i % kLoopCount));
  for (int loop = 1; loop < kLoopCount; ++loop) {
    if (middle(rates[loop]) > middle(rates[meter->loop_])) meter->loop_ = loop;
  }
  return meter;
}

double ReadMeter::read(int piece, int loop) {
  constexpr int64_t kBlock = 1024;
  const ReadLoop& how = kLoops[loop];
  const float* from = data_.get() + piece % kPieces * kPieceFloats;
  const auto begin = std::chrono::steady_clock::now();
  pool_.run([&](int worker) {
    const IndexRange r = split_range(kPieceFloats / kBlock, pool_.threads(), worker);
    sums_[static_cast<size_t>(worker) * 16] = HWY_DYNAMIC_DISPATCH(sum_floats)(
        from + r.begin * kBlock, (r.end - r.begin) * kBlock / how.streams, how.streams, how.ahead);
  });
  return static_cast<double>(kPieceFloats) * 4.0 / seconds_since(begin);
}

void ReadMeter::sample(int pieces) {
  read(piece_++, loop_);  // wakes the threads
  for (int i = 0; i < pieces; ++i) rates_.push_back(read(piece_++, loop_));
  std::this_thread::sleep_for(std::chrono::microseconds(200));
}

double ReadMeter::best() const { return rates_.empty() ? 0.0 : *std::max_element(rates_.begin(), rates_.end()); }

double ReadMeter::median() const { return middle(rates_); }

Peaks measure_peaks(ReadMeter& reads) {
  constexpr int64_t kRounds = 2'000'000;
  ThreadPool& pool = reads.pool();
  Peaks peaks{.isa = HWY_DYNAMIC_DISPATCH(target)(), .threads = pool.threads()};
  std::vector<Slot> slots(static_cast<size_t>(pool.threads()));
  reads.restart();
  reads.sample(80);
  peaks.read_bytes_per_s = reads.median();
  peaks.best_read_bytes_per_s = reads.best();
  peaks.flops_per_s = best_rate(pool, slots, [](float* sink) {
    return HWY_DYNAMIC_DISPATCH(multiply_add)(kRounds, sink);
  });
  peaks.bf16_flops_per_s = best_rate(pool, slots, [](float* sink) { return dot_bf16(kRounds, sink); });
  return peaks;
}

Result<std::optional<Peaks>> device_peaks(Backend& backend) {
  DSV4_ASSIGN(const Ceilings c, backend.measure_ceilings());
  if (c.read_bytes_per_s == 0.0) return std::optional<Peaks>();
  return std::optional<Peaks>(Peaks{.read_bytes_per_s = c.read_bytes_per_s,
                                    .bf16_flops_per_s = c.flops_per_s,
                                    .isa = c.flops_of,
                                    .cache_bytes = c.cache_bytes});
}

}  // namespace dsv4::bench
#endif  // HWY_ONCE
