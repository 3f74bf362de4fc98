// Random contents of published tensors, drawn directly as codes from a counter-based generator: the
// same bytes for the same seed whatever the number of threads and the order of calls.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "checkpoint/safetensors.h"
#include "model/config.h"
#include "model/tensor_table.h"

namespace dsv4 {

// Quantiles of the standard normal distribution at (u + 0.5) / 65536.
class NormalTable {
 public:
  NormalTable();
  float operator[](uint16_t u) const { return values_[u]; }

 private:
  std::vector<float> values_;
};

// How one stored tensor is drawn.
struct RandomTensor {
  enum class Kind : uint8_t {
    kNormalF32,
    kNormalBf16,
    kFp8Codes,       // normal with deviation `sigma`, in units of the code
    kFp4Codes,       // uniform over the 16 codes, two per byte
    kScaleBytes,     // UE8M0: `exponent` - 1, + 0 (half of them) or + 1
    kExpertIds,      // rows of distinct ids below `experts`
  };
  Kind kind = Kind::kNormalBf16;
  double mean = 0.0, sigma = 1.0;
  int exponent = 0;
  int64_t experts = 0, per_row = 0;
  uint64_t key = 0;  // of the generator: seed and name
};

// `stored` is one of stored_tensors(info, info.format), `index` which one. Linear weights have
// deviation 1 / sqrt(K), norms lie near 1, so activations keep their size through the layers.
RandomTensor plan_random(const TensorInfo& info, const TensorSpec& stored, size_t index,
                         const ModelConfig& config, uint64_t seed);

// Elements [begin, begin + count) of the tensor, as stored. `begin` is a multiple of 8.
void fill_random(const RandomTensor& tensor, const NormalTable& normal, uint64_t begin,
                 uint64_t count, void* out);

}  // namespace dsv4
