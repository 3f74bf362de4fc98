// Runner: runs batches of rows through the model and brings tokens and logits back. Owns everything a step
// writes besides the cache; after the first step of each shape it allocates nothing.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "base/log.h"
#include "cache/kv_cache.h"
#include "dsv4/status.h"
#include "engine/batch_builder.h"
#include "model/activations.h"
#include "model/forward.h"
#include "ops/backend.h"
#include "ops/context.h"

namespace dsv4 {

// Rows of logits on the host, valid until the next run: [rows, vocab] FP32.
struct LogitsView {
  const float* data = nullptr;
  int64_t rows = 0, vocab = 0;

  std::span<const float> row(int64_t i) const {
    return {data + i * vocab, static_cast<size_t>(vocab)};
  }
};

// What a step gives: of every row that was to be sampled its token, of the others that asked for logits
// these. A row whose logits are no numbers has no token but its logits, which tell why.
struct StepResult : LogitsView {
  std::span<const int32_t> tokens;  // [rows]; kNoToken: row(i) holds its logits

  bool has_token(int64_t i) const { return tokens[static_cast<size_t>(i)] != kNoToken; }
};

// What was run and recorded before the first request.
struct WarmUp {
  int64_t steps = 0;  // recorded
  double seconds = 0;
};

// What the engine needs of it; tests of the engine's decisions bring a cheaper one.
class StepRunner {
 public:
  virtual ~StepRunner() = default;
  // One forward pass over all sequences; results in the order of `sequences` and of their rows. The
  // caller commits every sequence (or as many of its rows as it accepts). On an error from before
  // the launch no sequence has changed; on one of the launch the sequences' rows are reserved but
  // not sound, so they have to be cleared. `launched`, where given, tells the two apart.
  virtual Result<StepResult> run(std::span<const SequenceRows> sequences,
                                 bool* launched = nullptr) = 0;
  virtual size_t workspace_bytes() const { return 0; }
  virtual int64_t workspace_growths() const { return 0; }
};

class Runner : public StepRunner {
 public:
  // All four must outlive the runner. `ops` is the table in force, backend.ops() or a wrapper of
  // it.
  static Result<std::unique_ptr<Runner>> make(const Model& model, KvCache& cache,
                                              const BatchLimits& limits, Backend& backend,
                                              const OpTable& ops);
  // Memory that make() allocates besides the activations.
  static size_t batch_bytes(const BatchLimits& limits, int64_t span) {
    return BatchBuilder::device_bytes(limits, span);
  }

  Result<StepResult> run(std::span<const SequenceRows> sequences,
                         bool* launched = nullptr) override;
  size_t workspace_bytes() const override { return workspace_.bytes(); }
  int64_t workspace_growths() const override { return workspace_.growths(); }

  // The pieces of run(), for those who look inside a step: prepare, then forward() or single layers
  // with activations(), cache().layers() and context(), then read_logits.
  Result<ForwardBatch> prepare(std::span<const SequenceRows> sequences);
  Result<LogitsView> read_logits(int64_t rows);

  // Where the backend can record: runs a prompt's largest chunk and a decode step of every power of two
  // of sequences, up to the largest batch, and records the latter, so that the first requests find memory,
  // kernels and graphs in place. Needs all of the cache, which is as empty afterwards. Elsewhere nothing.
  Result<WarmUp> warm_up(const ProgressSink& progress = {});

  // Steps of one row per sequence are recorded when their number of rows comes a second time and replayed
  // from then on, where the backend can. A number between two powers of two gets a recording of its own:
  // rows that fill a batch up would read experts that nobody asked for. Its first step costs the host more
  // time and the device none. Off: every op is called. On again: they are recorded anew, since the op table
  // may do something else by then.
  void replay(bool on) {
    replay_ = on;
    recorded_.clear();
  }
  // Kernels and copies of the last replayed step, those of the batch's arrays and of its tokens included;
  // 0 = the last step was not one.
  int64_t launches() const { return launches_; }
  // Of the last run(): what the host did before it waited for the device. Where ops run on the host, that
  // is all of it.
  double host_seconds() const { return host_seconds_; }

  const Model& model() const { return model_; }
  KvCache& cache() { return cache_; }
  Activations& activations() { return activations_; }
  OpContext& context() { return context_; }
  Stream& stream() { return *stream_; }
  const Workspace& workspace() const { return workspace_; }
  const BatchLimits& limits() const { return builder_.limits(); }

 private:
  Runner(const Model& model, KvCache& cache, Backend& backend, const OpTable& ops,
         std::unique_ptr<Stream> stream, BatchBuilder builder, Activations activations,
         Buffer logits, Buffer tokens);
  Status step(const ForwardBatch& batch);
  // Logits of the rows that ask for them.
  Status download_unsampled(std::span<const SequenceRows> sequences);
  Status download_logits(int64_t first, int64_t rows);
  Status wait();

  using Clock = std::chrono::steady_clock;

  const Model& model_;
  KvCache& cache_;
  Backend& backend_;
  std::unique_ptr<Stream> stream_;
  BatchBuilder builder_;
  Activations activations_;
  Workspace workspace_;
  OpContext context_;
  Buffer logits_;  // [max_logit_rows, vocab] on the host
  Buffer tokens_;  // [max_logit_rows] on the host
  // By rows of a decode step; a shape that ran once has an entry without a graph.
  std::map<int64_t, std::unique_ptr<Graph>> recorded_;
  bool replay_ = true;
  int64_t launches_ = 0;
  Clock::time_point wait_began_;
  double host_seconds_ = 0.0;
};

}  // namespace dsv4
