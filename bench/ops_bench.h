// Timing single ops. Our own loop rather than google-benchmark: what we report are columns that it
// has no place for (share of a roofline measured in the same run, ratio against another backend),
// and each call has to run on another copy of its weights, so that they come from memory as in a
// model.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bench/op_cases.h"
#include "bench/peak.h"
#include "ops/backend.h"

namespace dsv4::bench {

struct OpTiming {
  std::string op, name, impl;
  int64_t rows = 0;
  int64_t runs = 0, copies = 0;  // runs: calls, or graphs of several calls
  // Of a call, us: median. Where the backend records, the device's time of a graph of calls over their
  // number; elsewhere the host's time of a call.
  double us = 0.0, us_p90 = 0.0, us_min = 0.0;
  Cost cost;
  double bytes_per_s = 0.0, flops_per_s = 0.0;
  // Time that the roofline would take over the time taken, and which of its sides is the limit; 0
  // where no peaks are known, or where memory would be the limit and the data fits into the cache.
  double roofline = 0.0;
  double read_bytes_per_s = 0.0;  // of memory, measured in turn with the calls where that was possible
  bool memory_bound = false;
  double reference_us = 0.0;  // 0: not measured
};

struct OpsOptions {
  double seconds = 0.3;          // per case, after a warm-up run
  double reference_seconds = 1;  // cases that reference is expected to exceed are left out; 0: all
};

// `peaks` and `reads` may be nullptr. With `reads`, memory is read in turn with the calls, and the roofline
// takes the median of that.
Result<OpTiming> time_op(const OpCase& c, Backend& backend, const Peaks* peaks, ReadMeter* reads,
                         Backend* reference, const OpsOptions& options);

struct Quantiles {
  double min = 0.0, median = 0.0, p90 = 0.0;
};
Quantiles quantiles(std::vector<double> samples);

}  // namespace dsv4::bench
