// The tensors that a config implies: one row per logical weight. What inspects, writes or binds a
// checkpoint goes through this one table.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/tensor.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "dsv4/status.h"
#include "formats/weight_format.h"
#include "model/config.h"
#include "model/layer_plan.h"
#include "ops/weight.h"

namespace dsv4 {

enum class TensorGroup : uint8_t {
  kEmbed,      // embed, and the head with its norm and hc_head_*
  kHead,
  kAttention,  // with compressor and indexer
  kResidual,   // hc_attn_*, hc_ffn_*, and the norms of the two sublayers
  kRouter,
  kExperts,    // routed
  kShared,
  kMtp,        // what only an MTP block has: e_proj, h_proj, enorm, hnorm, norm, hc_head_*
};

struct TensorInfo {
  std::string name;  // of the elements: "layers.3.attn.wq_a.weight", "layers.3.attn.attn_sink"
  Shape shape;       // logical: [rows, cols] in elements, whatever is packed into a byte
  WeightFormat format = WeightFormat::kBf16;  // in a native checkpoint
  TensorGroup group = TensorGroup::kEmbed;
  int32_t layer = -1;   // main layer or MTP block
  int32_t expert = -1;  // routed experts
  bool is_mtp = false;
  uint32_t shard = 0;  // in the published split: embed, layers, head, MTP blocks

  int64_t rows() const { return shape.rank < 2 ? 1 : shape[0]; }
  int64_t cols() const { return shape.rank == 0 ? 1 : shape[shape.rank - 1]; }
};

class TensorTable {
 public:
  TensorTable(const ModelConfig& config, const ModelPlan& plan);
  TensorTable(TensorTable&&) = default;
  TensorTable& operator=(TensorTable&&) = default;
  TensorTable(const TensorTable&) = delete;
  TensorTable& operator=(const TensorTable&) = delete;

  const std::vector<TensorInfo>& rows() const { return rows_; }
  const TensorInfo* find(std::string_view name) const;
  uint32_t shard_count() const { return shard_count_; }

 private:
  std::vector<TensorInfo> rows_;
  std::unordered_map<std::string_view, size_t> by_name_;  // keys view rows_[i].name
  uint32_t shard_count_ = 0;
};

// The tensors in the file that hold one row of the table when it is stored in `format`: elements,
// block scales, global scales. A lookup table (kI32) is stored as I64.
std::vector<TensorSpec> stored_tensors(const TensorInfo& info, WeightFormat format);

// How this checkpoint stores it: NVFP4 where there is a weight_scale_2, FP8 where a routed expert has
// E4M3 elements, else as the table says. Decided per tensor, from the headers alone.
WeightFormat stored_format(const Checkpoint& checkpoint, const TensorInfo& info);

// Looks the tensors up and checks dtype, shape and scales (NaN); views of the mapped file. For kI32
// the elements are as stored, I64.
Result<WeightSource> find_weight(const Checkpoint& checkpoint, const TensorInfo& info);

}  // namespace dsv4
