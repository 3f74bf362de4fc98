#include "model/tensor_table.h"

#include <cstring>

#include "base/str.h"
#include "checkpoint/validate.h"

namespace dsv4 {
namespace {

// Writes the rows of the table in the order of the paper. D, d, r, ... as in ModelConfig.
class Builder {
 public:
  Builder(const ModelConfig& config, std::vector<TensorInfo>& rows) : c_(config), rows_(rows) {}

  void embedding() {
    at_ = {};
    add("embed.weight", {c_.vocab_size, c_.hidden_size}, WeightFormat::kBf16, TensorGroup::kEmbed);
  }
  void head(uint32_t shard) {
    at_ = {};
    at_.shard = shard;
    add("head.weight", {c_.vocab_size, c_.hidden_size}, WeightFormat::kBf16, TensorGroup::kHead);
    head_norm("", TensorGroup::kHead);
  }
  void block(const LayerPlan& plan, uint32_t shard) {
    at_ = {};
    at_.layer = static_cast<int32_t>(plan.index);
    at_.is_mtp = plan.is_mtp;
    at_.shard = shard;
    const std::string p = plan.prefix();
    if (plan.is_mtp) {
      const int64_t D = c_.hidden_size;
      linear(p + "e_proj", D, D, TensorGroup::kMtp);
      linear(p + "h_proj", D, D, TensorGroup::kMtp);
      vector(p + "enorm.weight", D, TensorGroup::kMtp);
      vector(p + "hnorm.weight", D, TensorGroup::kMtp);
      head_norm(p, TensorGroup::kMtp);
    }
    residual(p);
    attention(plan, p + "attn.");
    ffn(plan, p + "ffn.");
  }

 private:
  void add(const std::string& name, const Shape& shape, WeightFormat format, TensorGroup group,
           int64_t expert = -1) {
    TensorInfo row = at_;
    row.name = name;
    row.shape = shape;
    row.format = format;
    row.group = group;
    row.expert = static_cast<int32_t>(expert);
    rows_.push_back(std::move(row));
  }
  void linear(const std::string& base, int64_t rows, int64_t cols, TensorGroup group) {
    add(base + ".weight", {rows, cols}, WeightFormat::kFp8Tile128, group);
  }
  void dense(const std::string& name, int64_t rows, int64_t cols, TensorGroup group) {
    add(name, {rows, cols}, WeightFormat::kBf16, group);
  }
  void vector(const std::string& name, int64_t n, TensorGroup group) {
    add(name, {n}, WeightFormat::kBf16, group);
  }

  void head_norm(const std::string& p, TensorGroup group) {
    vector(p + "norm.weight", c_.hidden_size, group);
    add(p + "hc_head_fn", {c_.hc_mult, c_.hc_mult * c_.hidden_size}, WeightFormat::kF32, group);
    add(p + "hc_head_base", {c_.hc_mult}, WeightFormat::kF32, group);
    add(p + "hc_head_scale", {1}, WeightFormat::kF32, group);
  }

  void residual(const std::string& p) {
    for (const char* site : {"attn", "ffn"}) {
      const std::string hc = cat(p, "hc_", site);
      vector(cat(p, site, "_norm.weight"), c_.hidden_size, TensorGroup::kResidual);
      add(hc + "_fn", {c_.hc_rows(), c_.hc_mult * c_.hidden_size}, WeightFormat::kF32,
          TensorGroup::kResidual);
      add(hc + "_base", {c_.hc_rows()}, WeightFormat::kF32, TensorGroup::kResidual);
      add(hc + "_scale", {3}, WeightFormat::kF32, TensorGroup::kResidual);
    }
  }

  void attention(const LayerPlan& plan, const std::string& p) {
    constexpr TensorGroup g = TensorGroup::kAttention;
    const int64_t D = c_.hidden_size, H = c_.num_attention_heads, d = c_.head_dim;
    add(p + "attn_sink", {H}, WeightFormat::kF32, g);
    linear(p + "wq_a", c_.q_lora_rank, D, g);
    vector(p + "q_norm.weight", c_.q_lora_rank, g);
    linear(p + "wq_b", H * d, c_.q_lora_rank, g);
    linear(p + "wkv", d, D, g);
    vector(p + "kv_norm.weight", d, g);
    linear(p + "wo_a", c_.o_groups * c_.o_lora_rank, H / c_.o_groups * d, g);
    linear(p + "wo_b", D, c_.o_groups * c_.o_lora_rank, g);
    if (plan.has_compressor()) compressor(plan, p + "compressor.", d);
    if (plan.has_indexer()) {
      linear(p + "indexer.wq_b", c_.index_n_heads * c_.index_head_dim, c_.q_lora_rank, g);
      dense(p + "indexer.weights_proj.weight", c_.index_n_heads, D, g);
      compressor(plan, p + "indexer.compressor.", c_.index_head_dim);
    }
  }
  void compressor(const LayerPlan& plan, const std::string& p, int64_t dim) {
    constexpr TensorGroup g = TensorGroup::kAttention;
    const int64_t columns = plan.compressor_columns(dim);
    add(p + "ape", {plan.ratio, columns}, WeightFormat::kF32, g);
    dense(p + "wkv.weight", columns, c_.hidden_size, g);
    dense(p + "wgate.weight", columns, c_.hidden_size, g);
    vector(p + "norm.weight", dim, g);
  }

  void ffn(const LayerPlan& plan, const std::string& p) {
    const int64_t D = c_.hidden_size, I = c_.moe_intermediate_size, E = c_.n_routed_experts;
    dense(p + "gate.weight", E, D, TensorGroup::kRouter);
    if (plan.router == RouterKind::kHash) {
      add(p + "gate.tid2eid", {c_.vocab_size, c_.num_experts_per_tok}, WeightFormat::kI32,
          TensorGroup::kRouter);
    } else {
      add(p + "gate.bias", {E}, WeightFormat::kF32, TensorGroup::kRouter);
    }
    const WeightFormat format =
        c_.expert_dtype == ExpertDtype::kFp8 ? WeightFormat::kFp8Tile128 : WeightFormat::kMxfp4;
    for (int64_t e = 0; e < E; ++e) {
      const std::string expert = cat(p, "experts.", e);
      add(expert + ".w1.weight", {I, D}, format, TensorGroup::kExperts, e);
      add(expert + ".w2.weight", {D, I}, format, TensorGroup::kExperts, e);
      add(expert + ".w3.weight", {I, D}, format, TensorGroup::kExperts, e);
    }
    const int64_t S = I * c_.n_shared_experts;
    linear(p + "shared_experts.w1", S, D, TensorGroup::kShared);
    linear(p + "shared_experts.w2", D, S, TensorGroup::kShared);
    linear(p + "shared_experts.w3", S, D, TensorGroup::kShared);
  }

  const ModelConfig& c_;
  std::vector<TensorInfo>& rows_;
  TensorInfo at_;  // layer, shard of what is being added
};

// "x.w1.weight" -> "x.w1"; "" where the name has no such end (those have no scales).
std::string_view base_name(std::string_view name) {
  constexpr std::string_view kWeight = ".weight";
  if (!name.ends_with(kWeight)) return {};
  return name.substr(0, name.size() - kWeight.size());
}

DType element_dtype(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32: return DType::kF32;
    case WeightFormat::kBf16: return DType::kBF16;
    case WeightFormat::kFp8Tile128: return DType::kE4M3;
    case WeightFormat::kMxfp4: return DType::kI8;
    case WeightFormat::kNvfp4: return DType::kU8;
    case WeightFormat::kI32: return DType::kI64;
  }
  return DType::kF32;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Result<float> global_scale(const Checkpoint& checkpoint, const std::string& name) {
  const TensorEntry* entry = checkpoint.find(name);
  const bool one_value = entry && entry->shape == Shape{1};  // some tools write [1] for a scalar
  DSV4_ASSIGN(const TensorRef ref,
              checkpoint.tensor(name, DType::kF32, one_value ? Shape{1} : Shape{}));
  DSV4_TRY(check_scales(ref, name));
  float value;
  memcpy(&value, ref.data, sizeof value);
  if (value <= 0.0f) {
    return Status(Code::kCorrupt, cat(name, ": expected a positive scale, found ", value));
  }
  return value;
}

}  // namespace

TensorTable::TensorTable(const ModelConfig& config, const ModelPlan& plan) {
  Builder builder(config, rows_);
  builder.embedding();
  uint32_t shard = 1;
  for (const LayerPlan& layer : plan.layers) builder.block(layer, shard++);
  builder.head(shard++);
  for (const LayerPlan& block : plan.mtp) builder.block(block, shard++);
  shard_count_ = shard;
  by_name_.reserve(rows_.size());
  for (size_t i = 0; i < rows_.size(); ++i) by_name_.emplace(rows_[i].name, i);
}

const TensorInfo* TensorTable::find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &rows_[it->second];
}

std::vector<TensorSpec> stored_tensors(const TensorInfo& info, WeightFormat format) {
  const bool packed = format == WeightFormat::kMxfp4 || format == WeightFormat::kNvfp4;
  std::vector<TensorSpec> specs;
  specs.push_back({info.name, element_dtype(format),
                   packed ? Shape{info.rows(), info.cols() / 2} : info.shape});
  const FormatInfo& row = format_info(format);
  if (row.block_rows == 0) return specs;
  const std::string base(base_name(info.name));
  const Shape blocks{ceil_div(info.rows(), row.block_rows), ceil_div(info.cols(), row.block_cols)};
  if (format == WeightFormat::kNvfp4) {
    specs.push_back({base + ".weight_scale", row.scale_dtype, blocks});
    specs.push_back({base + ".weight_scale_2", DType::kF32, {}});
    specs.push_back({base + ".input_scale", DType::kF32, {}});
  } else {
    specs.push_back({base + ".scale", row.scale_dtype, blocks});
  }
  return specs;
}

WeightFormat stored_format(const Checkpoint& checkpoint, const TensorInfo& info) {
  if (info.group != TensorGroup::kExperts) return info.format;
  if (checkpoint.contains(cat(base_name(info.name), ".weight_scale_2"))) return WeightFormat::kNvfp4;
  if (const TensorEntry* entry = checkpoint.find(info.name)) {
    if (entry->dtype == DType::kE4M3) return WeightFormat::kFp8Tile128;
    if (entry->dtype == DType::kI8 || entry->dtype == DType::kU8) return WeightFormat::kMxfp4;
  }
  return info.format;
}

Result<WeightSource> find_weight(const Checkpoint& checkpoint, const TensorInfo& info) {
  WeightSource source;
  source.format = stored_format(checkpoint, info);
  std::vector<TensorSpec> specs = stored_tensors(info, source.format);
  if (source.format == WeightFormat::kMxfp4) {
    // Signed or unsigned, the byte is two codes.
    const TensorEntry* entry = checkpoint.find(info.name);
    if (entry && entry->dtype == DType::kU8) specs[0].dtype = DType::kU8;
  }
  DSV4_ASSIGN(source.weight, checkpoint.tensor(specs[0].name, specs[0].dtype, specs[0].shape));
  if (specs.size() > 1) {
    DSV4_ASSIGN(source.scale, checkpoint.tensor(specs[1].name, specs[1].dtype, specs[1].shape));
    DSV4_TRY(check_scales(source.scale, specs[1].name)
                 .with_context(checkpoint.shard_path(checkpoint.find(specs[1].name)->shard)));
  }
  if (source.format == WeightFormat::kNvfp4) {
    DSV4_ASSIGN(source.global_scale, global_scale(checkpoint, specs[2].name));
  }
  return source;
}

}  // namespace dsv4
