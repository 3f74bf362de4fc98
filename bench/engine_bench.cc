#include "bench/engine_bench.h"

#include <algorithm>
#include <chrono>

#include "bench/random.h"

namespace dsv4::bench {
namespace {

using Clock = std::chrono::steady_clock;

// What the streams of one run have in common.
class Streams : public EventSink {
 public:
  void on_token(RequestId, const TokenEvent& event) noexcept override {
    if (event.position == first_position) ++begun;
    ++tokens;
  }
  void on_finish(RequestId, FinishReason, const Usage&) noexcept override { ++ended; }
  void on_error(RequestId, const Status& error) noexcept override {
    status = error;
    ++ended;
  }

  int64_t first_position = 0;
  int64_t begun = 0, ended = 0, tokens = 0;
  Status status;
};

Result<EngineBenchRun> run_streams(Engine& engine, int64_t n, const EngineBenchOptions& o) {
  Rng rng(2026);
  Streams sink;
  sink.first_position = o.prompt;
  for (int64_t i = 0; i < n; ++i) {
    Request r;
    for (int64_t t = 0; t < o.prompt; ++t) {
      r.prompt.push_back(static_cast<int32_t>(rng.below(engine.info().vocab_size)));
    }
    r.sampling.temperature = o.temperature;
    r.sampling.seed = static_cast<uint64_t>(i);
    r.max_tokens = o.tokens;
    r.ignore_eos = true;
    const auto id = engine.submit(std::move(r), sink);
    if (!id.ok()) return id.status();
  }
  EngineBenchRun run{.streams = n};
  EngineStats before;
  int64_t tokens_before = 0;
  Clock::time_point begin;
  bool timing = false, timed = false;
  while (sink.ended < n) {
    if (const auto report = engine.step(); !report.ok()) return report.status();
    if (!timing && sink.begun == n) {
      timing = true;
      before = engine.stats();
      tokens_before = sink.tokens;
      begin = Clock::now();
    } else if (timing && !timed && sink.ended > 0) {
      timed = true;
      run.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
      const EngineStats after = engine.stats();
      run.steps = after.steps - before.steps;
      run.tokens_per_s = static_cast<double>(sink.tokens - tokens_before) / run.seconds;
      const double total = after.step_time.sum - before.step_time.sum;
      run.forward = (after.forward_seconds - before.forward_seconds) / total;
      run.sample = (after.sample_seconds - before.sample_seconds) / total;
      run.schedule = (after.schedule_seconds - before.schedule_seconds) / total;
      run.sinks = (after.sink_seconds - before.sink_seconds) / total;
    }
  }
  DSV4_TRY(sink.status);
  if (!timed) {
    return Status(Code::kInvalidArgument,
                  "bench: the first stream ends before the last has begun; time more --tokens");
  }
  return run;
}

}  // namespace

Result<EngineBenchResult> bench_engine(const EngineBenchOptions& o, const ProgressSink& progress) {
  EngineOptions options = o.engine;
  options.max_sequences = *std::max_element(o.streams.begin(), o.streams.end());
  options.context = o.prompt + o.tokens;
  DSV4_ASSIGN(const auto engine, Engine::load(options));
  EngineBenchResult result{.device = engine->info().device, .runs = {}};
  for (size_t i = 0; i < o.streams.size(); ++i) {
    if (progress) {
      progress({.stage = "streams",
                .done = static_cast<int64_t>(i),
                .total = std::ssize(o.streams),
                .unit = "runs"});
    }
    DSV4_ASSIGN(const EngineBenchRun run, run_streams(*engine, o.streams[i], o));
    result.runs.push_back(run);
  }
  return result;
}

}  // namespace dsv4::bench
