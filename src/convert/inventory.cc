#include "convert/inventory.h"

#include <string_view>
#include <unordered_set>

#include "base/str.h"
#include "model/tensor_table.h"

namespace dsv4 {
namespace {

bool same_dtype(DType expected, DType found) {
  const bool both_bytes = (expected == DType::kI8 || expected == DType::kU8) &&
                          (found == DType::kI8 || found == DType::kU8);
  return both_bytes || expected == found;
}

bool same_shape(const Shape& expected, const Shape& found) {
  return expected == found || (expected == Shape{} && found == Shape{1});
}

}  // namespace

Inventory take_inventory(const Checkpoint& checkpoint, const ModelConfig& config,
                         const ModelPlan& plan) {
  Inventory out;
  out.tensors = static_cast<int64_t>(checkpoint.entries().size());
  out.payload_bytes = checkpoint.data_bytes();

  std::unordered_set<std::string_view> implied;  // views of entry names
  const TensorTable table(config, plan);
  for (const TensorInfo& info : table.rows()) {
    const bool expert = info.group == TensorGroup::kExperts;
    const WeightFormat format = stored_format(checkpoint, info);
    if (expert) ++out.expert_formats[format];
    const int64_t elements = info.shape.elements();
    (info.is_mtp ? out.mtp_parameters : out.parameters) += elements;
    if (!info.is_mtp && (!expert || info.expert < config.num_experts_per_tok)) {
      out.active_parameters += elements;
    }
    for (const TensorSpec& spec : stored_tensors(info, format)) {
      const TensorEntry* entry = checkpoint.find(spec.name);
      if (!entry) {
        // Only engines with quantised activations need it.
        if (!spec.name.ends_with(".input_scale")) out.missing.push_back(spec.name);
        continue;
      }
      implied.insert(entry->name);
      if (!same_dtype(spec.dtype, entry->dtype) || !same_shape(spec.shape, entry->shape)) {
        out.mismatched.push_back(cat(spec.name, ": expected ", dtype_name(spec.dtype), " ",
                                     to_string(spec.shape), ", found ", dtype_name(entry->dtype), " ",
                                     to_string(entry->shape)));
      }
    }
  }
  for (const TensorEntry& entry : checkpoint.entries()) {
    DtypeTotal& total = out.by_dtype[entry.dtype];
    ++total.tensors;
    total.bytes += entry.bytes;
    if (!checkpoint.view(entry).ok()) ++out.without_data;
    if (implied.contains(entry.name)) continue;
    const bool other_draft = config.draft == DraftKind::kDspark && entry.name.starts_with("mtp.");
    (other_draft ? out.unused : out.unexpected).push_back(entry.name);
  }
  return out;
}

}  // namespace dsv4
