// Any bytes as a config.json; what is accepted must survive planning and being written back.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "model/config.h"
#include "model/layer_plan.h"
#include "model/tensor_table.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace dsv4;
  const auto config = parse_config({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!config.ok()) return 0;
  if (!parse_config(to_json(*config), "again").ok()) __builtin_trap();
  const ModelPlan plan = make_plan(*config);
  if (config->num_hidden_layers * config->n_routed_experts > 1000) return 0;
  const TensorTable table(*config, plan);
  for (const TensorInfo& info : table.rows()) {
    for (const TensorSpec& spec : stored_tensors(info, info.format)) {
      if (spec.shape.elements() <= 0) __builtin_trap();
    }
  }
  return 0;
}
