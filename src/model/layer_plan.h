// LayerPlan: what the config says about one layer. Model code branches on this, never on a name.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"

namespace dsv4 {

enum class AttentionKind : uint8_t {
  kSwa,  // sliding window only
  kCsa,  // compressed entries over overlapping windows, chosen by an indexer
  kHca,  // compressed entries without overlap, all of them attended
};
enum class RouterKind : uint8_t { kHash, kScore };

std::string_view attention_kind_name(AttentionKind kind);  // "SWA", "CSA", "HCA"
std::string_view router_kind_name(RouterKind kind);        // "hash", "score"

struct RopePlan {
  double theta = 0.0;
  RopeScaling yarn;  // original_max_position_embeddings == 0: none on this layer
};

struct LayerPlan {
  int64_t index = 0;      // main layer L, or MTP block i
  bool is_mtp = false;
  AttentionKind attention = AttentionKind::kSwa;
  RouterKind router = RouterKind::kScore;
  int64_t ratio = 0;      // m, tokens per compressed entry; 0 for SWA
  bool overlap = false;   // entries pool the previous window too (CSA)
  int64_t window = 0;     // W
  RopePlan rope;

  bool has_compressor() const { return ratio > 0; }
  bool has_indexer() const { return attention == AttentionKind::kCsa; }
  // Columns of the compressor's projections for entries of `dim` values.
  int64_t compressor_columns(int64_t dim) const { return overlap ? 2 * dim : dim; }
  // "layers.3." or "mtp.0.": how the names of its tensors begin.
  std::string prefix() const;
};

struct ModelPlan {
  std::vector<LayerPlan> layers;  // main layers
  std::vector<LayerPlan> mtp;
};

ModelPlan make_plan(const ModelConfig& config);

}  // namespace dsv4
