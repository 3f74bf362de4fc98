#include "bench/ops_bench.h"

#include <algorithm>
#include <chrono>

namespace dsv4::bench {
namespace {

using Clock = std::chrono::steady_clock;

// The reference backend does about this much: scalar code with FP64 sums.
constexpr double kReferenceFlops = 5e8;

// How long calls run before memory is read again: short against the changes of a shared machine's bandwidth.
constexpr double kTurnSeconds = 0.01;

constexpr int64_t kMostRuns = 2000;

// Calls in a graph at least, so that its start and its marks, a few us, are shared.
constexpr int64_t kRecordedCalls = 8;

// A case with as many copies of its data, of which each call takes the next one.
struct Calls {
  static Result<Calls> make(const OpCase& c, Backend& backend, int64_t copies) {
    Calls calls{.op_case = c, .backend = backend, .workspace = std::make_unique<Workspace>(backend)};
    DSV4_ASSIGN(calls.stream, backend.make_stream());
    for (int64_t i = 0; i < copies; ++i) {
      DSV4_ASSIGN(auto b, Bound::make(c, backend, *calls.stream));
      calls.bound.push_back(std::move(b));
    }
    return Result<Calls>(std::move(calls));
  }
  Status call() {
    OpContext ctx{backend, backend.ops(), *stream, *workspace};
    return op_case.call(ctx, *bound[next++ % bound.size()], op_case.whole);
  }
  Status call_and_wait() {
    DSV4_TRY(call());
    return backend.synchronize(*stream);
  }

  const OpCase& op_case;
  Backend& backend;
  std::unique_ptr<Stream> stream = {};
  std::unique_ptr<Workspace> workspace;
  std::vector<std::unique_ptr<Bound>> bound = {};
  size_t next = 0;
};

// Times of a call, in us: each the mean of a graph in which calls go round between the copies.
Status time_replays(Calls& calls, double seconds, std::vector<double>& us) {
  Backend& backend = calls.backend;
  DSV4_ASSIGN(const std::unique_ptr<Marks> marks, backend.make_marks(2));
  DSV4_TRY(calls.call_and_wait());
  const auto copies = std::ssize(calls.bound), n = (kRecordedCalls + copies - 1) / copies * copies;
  const auto body = [&]() -> Status {
    DSV4_TRY(marks->mark(*calls.stream, 0));
    for (int64_t i = 0; i < n; ++i) DSV4_TRY(calls.call());
    return marks->mark(*calls.stream, 1);
  };
  DSV4_ASSIGN(const std::unique_ptr<Graph> graph, backend.record(*calls.stream, body));
  double total = 0.0;
  for (int64_t i = 0; i < kMostRuns && (i < 4 || total < seconds); ++i) {
    DSV4_TRY(backend.launch(*calls.stream, *graph));
    DSV4_TRY(backend.synchronize(*calls.stream));
    DSV4_ASSIGN(const int64_t ns, marks->nanoseconds(0, 1));
    total += static_cast<double>(ns) * 1e-9;
    if (i > 0) us.push_back(static_cast<double>(ns) * 1e-3 / static_cast<double>(n));
  }
  return {};
}

Status time_runs(Calls& calls, double seconds, int64_t most, ReadMeter* reads,
                 std::vector<double>& us) {
  if (most > 1) DSV4_TRY(calls.call_and_wait());
  double total = 0.0, turn_ends = 0.0;
  for (int64_t i = 0; i < most && (i < 3 || total < seconds); ++i) {
    if (reads && total >= turn_ends) {
      reads->sample(2);
      turn_ends = total + kTurnSeconds;
      DSV4_TRY(calls.call_and_wait());  // wakes the backend's threads
    }
    const auto begin = Clock::now();
    DSV4_TRY(calls.call_and_wait());
    us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
    total += us.back() * 1e-6;
  }
  return {};
}

std::string_view impl_of(const OpTable& table, std::string_view op) {
  for (size_t i = 0; i < op_list().size(); ++i) {
    if (op_list()[i].name == op) return op_impl(table, i);
  }
  return "";
}

}  // namespace

Quantiles quantiles(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::sort(samples.begin(), samples.end());
  return {.min = samples.front(),
          .median = samples[samples.size() / 2],
          .p90 = samples[(samples.size() * 9) / 10]};
}

Result<OpTiming> time_op(const OpCase& c, Backend& backend, const Peaks* peaks, ReadMeter* reads,
                         Backend* reference, const OpsOptions& options) {
  OpTiming t{.op = c.op,
             .name = c.name,
             .impl = std::string(impl_of(backend.ops(), c.op)),
             .rows = c.rows,
             .cost = c.cost};
  // Enough copies that a call finds none of its weights in the cache; no more than 1 GiB of them.
  const int64_t bytes = std::max<int64_t>(c.cost.weight_bytes + c.cost.other_bytes, 1);
  const int64_t cache = peaks && peaks->cache_bytes ? peaks->cache_bytes : last_level_cache();
  t.copies = std::clamp<int64_t>(2 * cache / bytes + 1, 1, 64);
  t.copies = std::max<int64_t>(1, std::min(t.copies, (int64_t{1} << 30) / bytes));
  // What fits into the cache even with all copies is not held to the speed of memory.
  const bool cold = t.copies * bytes > cache;
  double arithmetic = 0.0;
  if (peaks) {
    arithmetic = static_cast<double>(c.cost.flops) / peaks->best_flops_per_s();
    t.memory_bound = static_cast<double>(bytes) / peaks->read_bytes_per_s >= arithmetic;
    t.read_bytes_per_s = peaks->read_bytes_per_s;
  }
  if (!cold || !t.memory_bound) reads = nullptr;
  if (reads) reads->restart();
  std::vector<double> us;
  {
    DSV4_ASSIGN(Calls calls, Calls::make(c, backend, t.copies));
    DSV4_TRY(backend.can_record() ? time_replays(calls, options.seconds, us)
                                  : time_runs(calls, options.seconds, kMostRuns, reads, us));
  }
  const Quantiles q = quantiles(us);
  t.runs = static_cast<int64_t>(us.size());
  t.us = q.median;
  t.us_p90 = q.p90;
  t.us_min = q.min;
  t.bytes_per_s = static_cast<double>(bytes) / (t.us * 1e-6);
  t.flops_per_s = static_cast<double>(c.cost.flops) / (t.us * 1e-6);
  if (peaks) {
    if (reads) t.read_bytes_per_s = reads->median();
    const double memory = static_cast<double>(bytes) / t.read_bytes_per_s;
    if (!t.memory_bound || cold) t.roofline = std::max(memory, arithmetic) / (t.us * 1e-6);
  }
  const double expected = static_cast<double>(c.cost.flops + bytes) / kReferenceFlops;
  if (reference && expected <= options.reference_seconds) {
    us.clear();
    DSV4_ASSIGN(Calls calls, Calls::make(c, *reference, 1));
    DSV4_TRY(time_runs(calls, 0.0, expected < 0.05 ? 5 : 1, nullptr, us));
    t.reference_us = quantiles(us).median;
  }
  return t;
}

}  // namespace dsv4::bench
