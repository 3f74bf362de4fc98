#include "bench/model_bench.h"

#include <algorithm>
#include <chrono>

#include "bench/ops_bench.h"
#include "bench/random.h"
#include "cache/kv_cache.h"
#include "engine/runner.h"

namespace dsv4::bench {
namespace {

using Clock = std::chrono::steady_clock;

// A step is recorded when it comes the second time.
constexpr int64_t kWarmSteps = 3, kWatchedSteps = 4, kRecordedAfter = 2;

double ms_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

// A cache, a runner over a table that can be traced, and `batch` open sequences.
struct Setup {
  Setup(const OpTable& table, uint64_t seed) : trace(table), rng(seed) {}

  TraceTable trace;
  Rng rng;
  std::unique_ptr<KvCache> cache;
  std::unique_ptr<Runner> runner;
  std::vector<SequenceCache> sequences;

  std::vector<int32_t> random_tokens(int64_t n) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < n; ++i)
      tokens.push_back(static_cast<int32_t>(rng.below(runner->model().config.vocab_size)));
    return tokens;
  }
  // `n` random tokens behind sequence i, in batches of at most `chunk` rows; logits of the last.
  Status feed(size_t i, int64_t n, int64_t chunk) {
    for (int64_t done = 0; done < n;) {
      const std::vector<int32_t> tokens = random_tokens(std::min(chunk, n - done));
      done += std::ssize(tokens);
      const SequenceRows rows{.cache = &sequences[i],
                              .tokens = tokens,
                              .logits = done == n ? LogitRows::kLast : LogitRows::kNone};
      DSV4_TRY(runner->run({&rows, 1}).status());
      DSV4_TRY(trace.finish_run());
      DSV4_TRY(sequences[i].commit(std::ssize(tokens)));
    }
    return {};
  }
};

Result<std::unique_ptr<Setup>> set_up(const Model& model, Backend& backend, int64_t sequences,
                                      int64_t context, int64_t rows) {
  auto s = std::make_unique<Setup>(backend.ops(), 2026);
  const CacheSpec spec = make_cache_spec(model.config, model.plan);
  const int64_t tokens = (context + spec.span - 1) / spec.span * spec.span * sequences;
  DSV4_ASSIGN(
      s->cache,
      KvCache::make(spec, {.max_sequences = sequences, .max_tokens = tokens, .max_rollback = 0},
                    backend));
  const BatchLimits limits{.max_rows = std::max(rows, sequences),
                           .max_sequences = sequences,
                           .max_logit_rows = sequences,
                           .context = context};
  DSV4_ASSIGN(s->runner, Runner::make(model, *s->cache, limits, backend, s->trace));
  return s;
}

Status open_sequences(Setup& s, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    DSV4_ASSIGN(SequenceCache sequence, s.cache->open());
    s.sequences.push_back(std::move(sequence));
  }
  return {};
}

Status decode_step(Setup& s) {
  const std::vector<int32_t> tokens = s.random_tokens(std::ssize(s.sequences));
  std::vector<SequenceRows> rows;
  for (size_t i = 0; i < s.sequences.size(); ++i) {
    rows.push_back({.cache = &s.sequences[i],
                    .tokens = std::span(tokens).subspan(i, 1),
                    .sample = {.kind = SampleKind::kLargest}});
  }
  DSV4_TRY(s.runner->run(rows).status());
  DSV4_TRY(s.trace.finish_run());
  for (SequenceCache& sequence : s.sequences) DSV4_TRY(sequence.commit(1));
  return {};
}

// Runs `once` for what its ops read and compute, then, after as many runs as it takes to be replayed, for
// their times. The means of `runs` each, slowest op first.
template <class Once>
Status watch_ops(Setup& s, Backend& backend, int64_t runs, int64_t until_replayed, const Once& once,
                 ModelBenchResult& r) {
  s.runner->replay(false);
  s.trace.watch_work();
  for (int64_t i = 0; i < runs; ++i) DSV4_TRY(once());
  const std::vector<OpRecord> work = s.trace.records();
  s.runner->replay(true);
  DSV4_TRY(s.trace.watch_time(backend));
  for (int64_t i = 0; i < until_replayed; ++i) DSV4_TRY(once());
  s.trace.clear();
  for (int64_t i = 0; i < runs; ++i) DSV4_TRY(once());
  r.ops_replayed = s.runner->launches() > 0;
  for (size_t i = 0; i < op_list().size(); ++i) {
    OpRecord record = work[i];
    if (record.calls == 0) continue;
    record.ns = s.trace.records()[i].ns;
    for (int64_t* v : {&record.calls, &record.ns, &record.bytes, &record.flops}) *v /= runs;
    r.bytes += record.bytes;
    r.flops += record.flops;
    r.ops_ms += static_cast<double>(record.ns) * 1e-6;
    r.ops.push_back({std::string(op_list()[i].name), std::string(op_impl(backend.ops(), i)), record});
  }
  std::sort(r.ops.begin(), r.ops.end(),
            [](const OpShare& a, const OpShare& b) { return a.record.ns > b.record.ns; });
  return {};
}

}  // namespace

Result<ModelBenchResult> bench_decode(const Model& model, Backend& backend,
                                      const ModelBenchOptions& o, const ProgressSink& progress) {
  const int64_t until_replayed = backend.can_record() ? kRecordedAfter : 0;
  const int64_t steps = kWarmSteps + o.tokens + 2 * kWatchedSteps + until_replayed;
  DSV4_ASSIGN(const auto s,
              set_up(model, backend, o.batch, o.context + steps, o.fill ? o.chunk : 1));
  ModelBenchResult r{.tokens_per_step = o.batch};
  const size_t free = backend.memory().available;
  DSV4_ASSIGN(const WarmUp warm_up, s->runner->warm_up(progress));
  DSV4_TRY(open_sequences(*s, o.batch));
  r.recorded_steps = warm_up.steps;
  r.warm_up_ms = warm_up.seconds * 1e3;
  r.warm_up_bytes = static_cast<int64_t>(free) - static_cast<int64_t>(backend.memory().available);
  const auto begin = Clock::now();
  for (size_t i = 0; i < s->sequences.size() && o.context > 0; ++i) {
    if (o.fill) {
      DSV4_TRY(s->feed(i, o.context, o.chunk));
      if (progress)
        progress({.stage = "context",
                  .done = static_cast<int64_t>(i) + 1,
                  .total = o.batch,
                  .unit = "sequences"});
    } else {
      DSV4_TRY(s->sequences[i].reserve(o.context));
      DSV4_TRY(s->sequences[i].commit(o.context));
    }
  }
  if (o.fill && o.context > 0)
    r.fill_tokens_per_s = static_cast<double>(o.batch * o.context) / (ms_since(begin) * 1e-3);

  std::vector<double> ms, host_us;
  for (int64_t i = 0; i < kWarmSteps; ++i) DSV4_TRY(decode_step(*s));
  for (int64_t i = 0; i < o.tokens; ++i) {
    if (o.between) o.between();
    const auto at = Clock::now();
    DSV4_TRY(decode_step(*s));
    ms.push_back(ms_since(at));
    host_us.push_back(s->runner->host_seconds() * 1e6);
    r.launches = s->runner->launches();
    if (progress) progress({.stage = "decode", .done = i + 1, .total = o.tokens, .unit = "steps"});
  }
  DSV4_TRY(watch_ops(*s, backend, kWatchedSteps, until_replayed, [&] { return decode_step(*s); }, r));
  const Quantiles q = quantiles(ms);
  r.ms_median = q.median;
  r.ms_p90 = q.p90;
  r.host_us = quantiles(host_us).median;
  r.tokens_per_s = static_cast<double>(o.batch) / (q.median * 1e-3);
  return r;
}

Result<ModelBenchResult> bench_prefill(const Model& model, Backend& backend,
                                       const ModelBenchOptions& o, const ProgressSink& progress) {
  DSV4_ASSIGN(const auto s, set_up(model, backend, 1, o.tokens, std::min(o.chunk, o.tokens)));
  DSV4_TRY(open_sequences(*s, 1));
  ModelBenchResult r{.tokens_per_step = o.tokens};
  std::vector<double> ms;
  for (int64_t i = 0; i <= o.repeats; ++i) {  // the first grows the workspace and is not counted
    s->sequences[0].clear();
    if (o.between) o.between();
    const auto at = Clock::now();
    DSV4_TRY(s->feed(0, o.tokens, o.chunk));
    if (i > 0 || o.repeats == 0) ms.push_back(ms_since(at));
    if (progress)
      progress({.stage = "prefill", .done = i + 1, .total = o.repeats + 3, .unit = "runs"});
  }
  const auto prompt = [&] {
    s->sequences[0].clear();
    return s->feed(0, o.tokens, o.chunk);
  };
  DSV4_TRY(watch_ops(*s, backend, 1, 0, prompt, r));
  const Quantiles q = quantiles(ms);
  r.ms_median = q.median;
  r.ms_p90 = q.p90;
  r.tokens_per_s = static_cast<double>(o.tokens) / (q.median * 1e-3);
  return r;
}

}  // namespace dsv4::bench
