// Packing on the device: published bytes -> blocks, and the inverse.
#pragma once

#include "backends/cuda/core.h"
#include "backends/cuda/packed.h"
#include "base/buffer.h"
#include "ops/weight.h"

namespace dsv4::cuda {

struct Weight : PackedWeight::Impl {
  WeightRole role = WeightRole::kVector;
  MatrixStack stack;
  int64_t count = 0;
  int64_t rows_per_group = 0;  // kGrouped
  Buffer owned, global_scales;
};

inline const Weight& weight(const WeightView& view) { return *static_cast<const Weight*>(view.impl); }
inline const Matrix& matrix(const WeightView& view) { return weight(view).stack.first; }

Result<Buffer> allocate_device(size_t bytes, bool zero);
size_t packed_bytes(const PackRequest& request);
// Each matrix crosses the bus as published and is laid out on the device; done when this returns.
Result<PackedWeight> pack(cudaStream_t stream, const PackRequest& request);
Status unpack(cudaStream_t stream, const PackedWeight& packed, int64_t index, void* codes, void* scales);

}  // namespace dsv4::cuda
