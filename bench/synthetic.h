// A model of random weights in memory: any config, no checkpoint, no disk.
#pragma once

#include <cstdint>
#include <deque>

#include "base/log.h"
#include "bench/host_weight.h"
#include "dsv4/status.h"
#include "model/forward.h"
#include "ops/backend.h"

namespace dsv4::bench {

struct SyntheticModel {
  Model model;
  // Published bytes that the backend only borrows; empty for a backend that copies.
  std::deque<HostWeight> borrowed;
};

// Weights are made, packed and freed one by one. The experts of a layer share the bytes of a few
// matrices (each is packed on its own), so that making them costs little.
Result<SyntheticModel> make_synthetic(const ModelConfig& config, Backend& backend, uint64_t seed,
                                      const ProgressSink& progress);

}  // namespace dsv4::bench
