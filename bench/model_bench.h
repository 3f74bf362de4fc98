// Timing a whole model: decode steps of a batch, or the prefill of a prompt.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/log.h"
#include "model/forward.h"
#include "ops/backend.h"
#include "ops/trace.h"

namespace dsv4::bench {

struct ModelBenchOptions {
  int64_t context =
      512;              // decode: tokens in the cache of each sequence before the first timed step
  int64_t tokens = 16;  // decode: timed steps; prefill: prompt length
  int64_t batch = 1;    // decode: sequences
  int64_t chunk = 512;  // rows of a prefill batch at most
  bool fill = true;     // decode: run the context through the model; false: leave the cache zero
  int64_t repeats = 3;  // prefill: times the prompt is run
  std::function<void()> between;  // called before each timed step or prompt, untimed; may be empty
};

struct OpShare {
  std::string op, impl;
  OpRecord record;  // per step (decode) or per prompt (prefill)
};

struct ModelBenchResult {
  int64_t tokens_per_step = 0;
  double ms_median = 0.0, ms_p90 = 0.0;  // of a step or of a prompt
  double tokens_per_s = 0.0;
  double fill_tokens_per_s = 0.0;  // decode: the speed at which the context was run; 0 = not run
  int64_t bytes = 0;               // weights and cache rows read per step or prompt, at least
  int64_t flops = 0;
  int64_t launches = 0;  // kernels and copies of a replayed step, all of it; 0 = steps are not replayed
  double host_us = 0.0;  // median time of the host in a step before it waits for the device
  // Decode, where steps are replayed: what recording a step of every power of two of sequences took, up to the
  // batch, with a prompt's chunk before, and how much less of the device's memory is free for it.
  int64_t recorded_steps = 0;
  double warm_up_ms = 0.0;
  int64_t warm_up_bytes = 0;
  std::vector<OpShare> ops;  // by time, measured in steps or prompts of their own, with marks between the ops
  double ops_ms = 0.0;       // their sum
  bool ops_replayed = false;  // inside a replayed step
};

Result<ModelBenchResult> bench_decode(const Model& model, Backend& backend,
                                      const ModelBenchOptions& options,
                                      const ProgressSink& progress);
Result<ModelBenchResult> bench_prefill(const Model& model, Backend& backend,
                                       const ModelBenchOptions& options,
                                       const ProgressSink& progress);

}  // namespace dsv4::bench
