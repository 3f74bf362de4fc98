// PackedWeight: a weight in the layout one backend wants. Made only by Backend::pack.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/tensor.h"
#include "formats/weight_format.h"

namespace dsv4 {

// What the weight is for; decides the layout a backend chooses.
enum class WeightRole : uint8_t {
  kVector,   // norms, sinks, biases, mHC matrices, tables: plain row-major, read by any op
  kEmbed,    // rows are looked up by token id
  kLinear,   // y = W x
  kGrouped,  // wo_a: G blocks of rows, each applied to its own slice of the input, no act8
  kExperts,  // a stack of E matrices, one per expert
};

// One published matrix: the bytes as they lie in the file.
struct WeightSource {
  WeightFormat format = WeightFormat::kBf16;
  TensorRef weight;
  TensorRef scale;             // block scales; data == nullptr where the format has none
  float global_scale = 1.0f;   // NVFP4 weight_scale_2
};

struct PackRequest {
  WeightRole role = WeightRole::kVector;
  int64_t rows = 0, cols = 0;         // logical shape of each source [rows, cols]
  int64_t groups = 1;                 // kGrouped: rows = groups * rows per group
  std::vector<WeightSource> sources;  // one, or E for kExperts
};

// POD handed to ops. `impl` is backend-private (on the host). `plain` is set for kVector only: the
// elements, row-major, contiguous and aligned, in the backend's memory.
struct WeightView {
  const void* impl = nullptr;
  const void* plain = nullptr;
  int64_t count = 0;  // matrices in the stack
  int64_t rows = 0, cols = 0;
  WeightFormat format = WeightFormat::kBf16;  // of the first source
};

class PackedWeight {
 public:
  // What a backend keeps behind the handle.
  struct Impl {
    virtual ~Impl() = default;
  };

  PackedWeight() = default;
  PackedWeight(std::unique_ptr<Impl> impl, WeightView view, size_t bytes)
      : impl_(std::move(impl)), view_(view), bytes_(bytes) {
    view_.impl = impl_.get();
  }

  const WeightView& view() const { return view_; }
  // Memory owned by this handle, in the backend's memory; borrowed file pages do not count.
  size_t bytes() const { return bytes_; }
  explicit operator bool() const { return impl_ != nullptr; }

 private:
  std::unique_ptr<Impl> impl_;
  WeightView view_;
  size_t bytes_ = 0;
};

}  // namespace dsv4
