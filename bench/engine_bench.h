// Timing the engine as a server uses it: streams side by side, and where a step's time goes.
#pragma once

#include <cstdint>
#include <vector>

#include "base/log.h"
#include "dsv4/engine.h"

namespace dsv4::bench {

struct EngineBenchOptions {
  EngineOptions engine;  // limits are set to what the runs need
  std::vector<int64_t> streams = {1, 8, 32, 64};
  int64_t prompt = 32;    // tokens of each
  int64_t tokens = 64;    // of each answer
  float temperature = 1;  // 0: the most likely token
};

// The time in which all streams decode: from when the last has its first token to the first end.
struct EngineBenchRun {
  int64_t streams = 0, steps = 0;
  double seconds = 0;
  double tokens_per_s = 0;
  // Parts of a step's time.
  double forward = 0, sample = 0, schedule = 0, sinks = 0;
};

struct EngineBenchResult {
  std::string device;
  std::vector<EngineBenchRun> runs;
};

Result<EngineBenchResult> bench_engine(const EngineBenchOptions& options,
                                       const ProgressSink& progress);

}  // namespace dsv4::bench
