// What lies in a checkpoint, compared with what its config implies. Reads headers only.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "formats/weight_format.h"
#include "model/config.h"
#include "model/layer_plan.h"

namespace dsv4 {

struct DtypeTotal {
  int64_t tensors = 0;
  uint64_t bytes = 0;
};

struct Inventory {
  int64_t tensors = 0;
  uint64_t payload_bytes = 0;
  std::map<DType, DtypeTotal> by_dtype;
  std::map<WeightFormat, int64_t> expert_formats;  // routed expert matrices of each format

  // Logical weights (not bytes): of the main model, those of them that one token uses, and of the
  // MTP blocks.
  int64_t parameters = 0, active_parameters = 0, mtp_parameters = 0;

  std::vector<std::string> missing;     // implied, not there
  std::vector<std::string> mismatched;  // other dtype or shape; one line each, with both
  std::vector<std::string> unexpected;  // there, not implied
  std::vector<std::string> unused;      // of a draft part that cannot be run
  int64_t without_data = 0;             // tensors beyond the end of their file

  bool complete() const { return missing.empty() && mismatched.empty(); }
};

Inventory take_inventory(const Checkpoint& checkpoint, const ModelConfig& config,
                         const ModelPlan& plan);

}  // namespace dsv4
