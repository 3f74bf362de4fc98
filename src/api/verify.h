// Verification of an installation: a checkpoint and a backend against the outputs that the published
// model code gave (a golden file).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "api/loaded_model.h"
#include "base/log.h"
#include "dsv4/status.h"

namespace dsv4 {

// What a correct implementation reaches. Which set holds is the backend's own claim
// (Backend::exact_rounding).
struct VerifyLimits {
  double layer_cosine = 0.0;          // mean over positions, every layer
  double prefill_error = 0.0;         // median over positions, every layer
  double decode_error = 0.0;
  double mtp_cosine = 0.0;
  // End to end, random weights are chaotic: one flipped expert changes everything after it, so these
  // judge by means and leave room.
  double end_to_end_cosine = 0.985;
  double end_to_end_agreement = 0.84;
};
VerifyLimits default_limits(bool exact_rounding);

// Rows of one layer, fed the golden streams that enter it, against the golden streams that leave it.
// error = |out - ref| / |ref - in| per position: relative to the layer's own change.
struct LayerPhase {
  double mean_cosine = 0.0;
  double median_error = 0.0, max_error = 0.0;
};

struct LayerReport {
  int64_t layer = 0;
  std::string kind;  // SWA, CSA, HCA
  LayerPhase prefill, decode;
  // CSA: rows whose selected entries equal the golden set. Scores tie, so this is information only.
  std::optional<double> selection_agreement;
};

// Logits of a whole pass against the golden ones.
struct EndToEndPhase {
  double mean_cosine = 0.0;
  double argmax_agreement = 0.0;
};

struct VerifyReport {
  std::string backend;
  int64_t prompt_tokens = 0, decode_tokens = 0;
  VerifyLimits limits;
  std::vector<LayerReport> layers;
  std::optional<double> mtp_cosine;
  EndToEndPhase prefill, decode;
  std::vector<std::string> failures;  // one line per figure outside its limit
  bool passed() const { return failures.empty(); }
};

Result<VerifyReport> verify_golden(const LoadedModel& loaded, const std::string& golden_path,
                                   const VerifyLimits& limits, const ProgressSink& progress);

}  // namespace dsv4
