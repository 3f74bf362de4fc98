// Synthetic checkpoints: random weights in the published layout, for any config.
#pragma once

#include <cstdint>
#include <string>

#include "base/log.h"
#include "dsv4/status.h"
#include "model/config.h"

namespace dsv4 {

// The config with fewer layers, experts or another vocabulary; 0 keeps what it has. Of
// compress_ratios the first `layers` entries of the main layers stay, and those of the MTP blocks.
struct ConfigCut {
  int64_t layers = 0, experts = 0, vocab = 0;
};
Result<ModelConfig> cut_config(ModelConfig config, const ConfigCut& cut);

struct SynthOptions {
  uint64_t seed = 1;
  bool single_file = false;    // model.safetensors instead of the published split into shards
  bool header_only = false;    // files end after their headers
  std::string tokenizer_path;  // copied; empty: a byte-level tokenizer is made
  int threads = 0;             // 0: all cores. The bytes do not depend on it.
};

// Writes weights, tokenizer.json, generation_config.json and, last, config.json into `dir`, which is
// made; it must not hold a checkpoint already. What was written is removed again on an error.
Status write_synthetic(const ModelConfig& config, const SynthOptions& options,
                       const std::string& dir, const ProgressSink& progress = {});

}  // namespace dsv4
