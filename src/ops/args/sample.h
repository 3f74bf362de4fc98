// Sampling: rows of logits -> tokens, steps 4 to 8 of the order at SamplingParams (dsv4/types.h).
// What comes before them (penalties, bias, constraints) and log probabilities are the engine's.
#pragma once

#include <cstdint>

namespace dsv4 {

enum class SampleKind : int32_t {
  kNone,     // no token is wanted of this row
  kLargest,  // the largest logit, the lowest id on ties
  kDraw,
};

// How one row is sampled.
struct SampleRow {
  uint64_t seed = 0;
  int64_t position = 0;  // of the token, in its sequence
  SampleKind kind = SampleKind::kNone;
  float inverse_temperature = 1.0f;  // finite, > 0
  int32_t top_k = 0;                 // 0 = off
  float top_p = 1.0f;                // 1 = off
  float min_p = 0.0f;                // 0 = off
  int32_t unused = 0;
};

inline constexpr int32_t kNoToken = -1;
inline constexpr int64_t kMaxSampleVocab = int64_t{1} << 20;  // a sum of so many weights fits 64 bits

// tokens[r] = the token of row r; kNoToken for SampleKind::kNone and where a logit is NaN or +inf or
// none is above -inf. Weights and their sums are integers (ops/sampling.h): every backend draws the
// same token.
struct SampleArgs {
  const float* logits;    // [R, V]
  const SampleRow* rows;  // [R]
  int32_t* tokens;        // [R]
  int64_t R, V;           // V <= kMaxSampleVocab
};

}  // namespace dsv4
