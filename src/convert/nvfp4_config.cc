// The metadata of an NVFP4 checkpoint. Loaders decide per tensor, by weight_scale_2; these files tell
// other engines what to expect.
#include <nlohmann/json.hpp>

#include "base/str.h"
#include "convert/nvfp4.h"

namespace dsv4 {
namespace {

using Json = nlohmann::ordered_json;

const Json kProducer = {{"name", "modelopt"}, {"version", "dsv4-nvfp4-experts"}};
// "Excluded" means left in the native format (FP8, MXFP4), not BF16.
const Json kExcluded = {"*.attn.*", "*.ffn.shared_experts.*", "head", "mtp.*"};

Json quantized_layers(int64_t layers) {
  Json out = Json::object();
  for (int64_t i = 0; i < layers; ++i) {
    out[cat("layers.", i, ".ffn.experts")] = {{"quant_algo", "NVFP4"}, {"group_size", 16}};
  }
  return out;
}

}  // namespace

Result<std::string> nvfp4_config_json(std::string_view config_json, std::string_view origin,
                                      int64_t layers) {
  Json config = Json::parse(config_json.begin(), config_json.end(), nullptr, false);
  if (!config.is_object()) {
    return Status(Code::kCorrupt, cat(origin, ": expected a JSON object; download the file again"));
  }
  Json quant = config.contains("quantization_config") && config["quantization_config"].is_object()
                   ? config["quantization_config"]
                   : Json{{"activation_scheme", "dynamic"},
                          {"fmt", "e4m3"},
                          {"quant_method", "fp8"},
                          {"scale_fmt", "ue8m0"},
                          {"weight_block_size", {128, 128}}};
  const Json four_bits = {{"dynamic", false}, {"group_size", 16}, {"num_bits", 4}, {"type", "float"}};
  quant["moe_quant_algo"] = "NVFP4";
  quant["quant_algo"] = "MIXED_PRECISION";
  quant["kv_cache_quant_algo"] = nullptr;
  quant["group_size"] = 16;
  quant["producer"] = kProducer;
  quant["config_groups"] = {{"group_0",
                             {{"input_activations", four_bits},
                              {"weights", four_bits},
                              {"targets", Json::array({"Linear"})}}}};
  quant["quantized_layers"] = quantized_layers(layers);
  quant["ignore"] = kExcluded;
  config["quantization_config"] = std::move(quant);
  return config.dump(2) + "\n";
}

std::string nvfp4_quant_config_json(int64_t layers) {
  const Json out = {{"producer", kProducer},
                    {"quantization",
                     {{"quant_algo", "MIXED_PRECISION"},
                      {"kv_cache_quant_algo", nullptr},
                      {"group_size", 16},
                      {"quantized_layers", quantized_layers(layers)},
                      {"exclude_modules", kExcluded}}}};
  return out.dump(2) + "\n";
}

}  // namespace dsv4
