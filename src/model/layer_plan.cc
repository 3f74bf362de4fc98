#include "model/layer_plan.h"

#include "base/str.h"

namespace dsv4 {
namespace {

LayerPlan plan_layer(const ModelConfig& config, int64_t index, bool is_mtp) {
  LayerPlan plan;
  plan.index = index;
  plan.is_mtp = is_mtp;
  plan.ratio = config.ratio(is_mtp ? config.num_hidden_layers + index : index);
  plan.window = config.sliding_window;
  if (plan.ratio == 0) {
    plan.attention = AttentionKind::kSwa;
    plan.rope.theta = config.rope_theta;
  } else {
    // The published models tell CSA from HCA by the ratio alone.
    plan.attention = plan.ratio == 4 ? AttentionKind::kCsa : AttentionKind::kHca;
    plan.overlap = plan.attention == AttentionKind::kCsa;
    plan.rope = {config.compress_rope_theta, config.rope_scaling};
  }
  plan.router =
      !is_mtp && index < config.num_hash_layers ? RouterKind::kHash : RouterKind::kScore;
  return plan;
}

}  // namespace

std::string_view attention_kind_name(AttentionKind kind) {
  switch (kind) {
    case AttentionKind::kSwa: return "SWA";
    case AttentionKind::kCsa: return "CSA";
    case AttentionKind::kHca: return "HCA";
  }
  return "?";
}

std::string_view router_kind_name(RouterKind kind) {
  return kind == RouterKind::kHash ? "hash" : "score";
}

std::string LayerPlan::prefix() const { return cat(is_mtp ? "mtp." : "layers.", index, "."); }

ModelPlan make_plan(const ModelConfig& config) {
  ModelPlan plan;
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    plan.layers.push_back(plan_layer(config, i, false));
  }
  for (int64_t i = 0; i < config.mtp_layers(); ++i) plan.mtp.push_back(plan_layer(config, i, true));
  return plan;
}

}  // namespace dsv4
