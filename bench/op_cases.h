// Case sets: which shapes of each op are compared, and which are timed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bench/op_case.h"
#include "model/config.h"

namespace dsv4::bench {

struct CaseSpec {
  std::string op, name;
  std::function<OpCase()> make;  // data is made on demand: sets hold more than memory should
};

// Small shapes at every border that the config rules allow: ragged, one past a block, positions
// that start inside a window, formats, routing without balance.
std::vector<CaseSpec> parity_cases();
// Shapes that take a path for very many rows; seconds each against the scalar reference.
std::vector<CaseSpec> large_cases();

struct TimingOptions {
  int64_t context = 512;  // tokens before the timed rows
  int64_t experts = 64;   // of the MoE cases; memory is about 13 MB each for the Flash shape
};
// The shapes of a model, `rows` tokens at once: decode of that many sequences. Larger row counts
// are chunks of one sequence's prefill.
std::vector<CaseSpec> model_cases(const ModelConfig& config, int64_t rows,
                                  const TimingOptions& options);

}  // namespace dsv4::bench
