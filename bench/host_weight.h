// Random weights as they would lie in a file: valid codes, sensible scales.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "bench/random.h"
#include "formats/weight_format.h"
#include "ops/weight.h"

namespace dsv4::bench {

struct HostMatrix {
  std::vector<uint8_t> elements, scales;
  float global_scale = 1.0f;
};

// Values have a spread of about 1/sqrt(cols), so that y = W x is as large as x. Scale bytes vary.
HostMatrix random_matrix(WeightFormat format, int64_t rows, int64_t cols, Rng& rng);

// One PackRequest with its bytes. Matrices may be shared: a stack of experts for timing needs the
// bytes of one, a stack for comparing needs all different.
struct HostWeight {
  WeightRole role = WeightRole::kLinear;
  WeightFormat format = WeightFormat::kBf16;
  int64_t rows = 0, cols = 0, groups = 1;
  std::vector<std::shared_ptr<HostMatrix>> matrices;

  PackRequest request() const;
  // Bytes of one matrix of the stack as published: what a kernel has to read at least.
  int64_t matrix_bytes() const;
  // The same weight with every sign cleared, for error bounds relative to sum |x||w|.
  HostWeight absolute() const;
};

// distinct: how many different matrices the stack of `count` is made of.
HostWeight random_weight(WeightRole role, WeightFormat format, int64_t rows, int64_t cols, Rng& rng,
                         int64_t count = 1, int64_t distinct = 1);

}  // namespace dsv4::bench
