#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>

#include "base/str.h"

namespace dsv4 {
namespace {

using Json = nlohmann::json;

constexpr std::uintmax_t kMaxConfigBytes = 64u << 20;

// One row per number: both spellings, where it goes, whether the file must have it.
struct IntField {
  const char* hf;
  const char* native;  // nullptr: the native file has no such key
  int64_t ModelConfig::*member;
  bool required;
};
constexpr IntField kIntFields[] = {
    {"vocab_size", "vocab_size", &ModelConfig::vocab_size, true},
    {"hidden_size", "dim", &ModelConfig::hidden_size, true},
    {"num_hidden_layers", "n_layers", &ModelConfig::num_hidden_layers, true},
    {"num_hash_layers", "n_hash_layers", &ModelConfig::num_hash_layers, true},
    {"num_nextn_predict_layers", "n_mtp_layers", &ModelConfig::num_nextn_predict_layers, false},
    {"num_attention_heads", "n_heads", &ModelConfig::num_attention_heads, true},
    {"head_dim", "head_dim", &ModelConfig::head_dim, true},
    {"qk_rope_head_dim", "rope_head_dim", &ModelConfig::qk_rope_head_dim, true},
    {"q_lora_rank", "q_lora_rank", &ModelConfig::q_lora_rank, true},
    {"o_groups", "o_groups", &ModelConfig::o_groups, true},
    {"o_lora_rank", "o_lora_rank", &ModelConfig::o_lora_rank, true},
    {"sliding_window", "window_size", &ModelConfig::sliding_window, true},
    {"index_n_heads", "index_n_heads", &ModelConfig::index_n_heads, false},
    {"index_head_dim", "index_head_dim", &ModelConfig::index_head_dim, false},
    {"index_topk", "index_topk", &ModelConfig::index_topk, false},
    {"n_routed_experts", "n_routed_experts", &ModelConfig::n_routed_experts, true},
    {"n_shared_experts", "n_shared_experts", &ModelConfig::n_shared_experts, false},
    {"num_experts_per_tok", "n_activated_experts", &ModelConfig::num_experts_per_tok, true},
    {"moe_intermediate_size", "moe_inter_dim", &ModelConfig::moe_intermediate_size, true},
    {"hc_mult", "hc_mult", &ModelConfig::hc_mult, true},
    {"hc_sinkhorn_iters", "hc_sinkhorn_iters", &ModelConfig::hc_sinkhorn_iters, true},
    {"max_position_embeddings", nullptr, &ModelConfig::max_position_embeddings, false},
    {"bos_token_id", nullptr, &ModelConfig::bos_token_id, false},
    {"eos_token_id", nullptr, &ModelConfig::eos_token_id, false},
};

struct RealField {
  const char* hf;
  const char* native;
  double ModelConfig::*member;
  bool required;
};
constexpr RealField kRealFields[] = {
    {"routed_scaling_factor", "route_scale", &ModelConfig::routed_scaling_factor, true},
    {"swiglu_limit", "swiglu_limit", &ModelConfig::swiglu_limit, true},
    {"hc_eps", "hc_eps", &ModelConfig::hc_eps, false},
    {"rms_norm_eps", "norm_eps", &ModelConfig::rms_norm_eps, false},
    {"rope_theta", "rope_theta", &ModelConfig::rope_theta, true},
    {"compress_rope_theta", "compress_rope_theta", &ModelConfig::compress_rope_theta, true},
};

// Reads one JSON object and remembers the first error; later reads then do nothing.
class Reader {
 public:
  Reader(const Json& object, std::string_view origin) : object_(object), origin_(origin) {}

  const Status& status() const { return status_; }
  const Json* get(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  void integer(const char* key, int64_t& out, bool required) {
    const Json* value = want(key, required);
    if (!value) return;
    const bool fits = value->is_number_unsigned()
                          ? value->get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX)
                          : value->is_number_integer();
    if (!fits) return type_error(key, "an integer", *value);
    out = value->get<int64_t>();
  }
  void real(const char* key, double& out, bool required) {
    const Json* value = want(key, required);
    if (!value) return;
    if (!value->is_number()) return type_error(key, "a number", *value);
    out = value->get<double>();
  }
  void text(const char* key, std::string& out) {
    const Json* value = want(key, false);
    if (!value) return;
    if (!value->is_string()) return type_error(key, "a string", *value);
    out = value->get<std::string>();
  }
  void integers(const char* key, std::vector<int64_t>& out) {
    const Json* value = want(key, true);
    if (!value) return;
    if (!value->is_array()) return type_error(key, "a list of integers", *value);
    for (const Json& item : *value) {
      if (!item.is_number_integer() || item.get<int64_t>() < 0) {
        return type_error(key, "a list of integers >= 0", item);
      }
      out.push_back(item.get<int64_t>());
    }
  }
  // A key whose value may only be `expected`: nothing else can be run.
  void fixed(const char* key, const Json& expected) {
    const Json* value = want(key, false);
    if (!value || *value == expected) return;
    fail(Code::kUnsupported, cat(key, ": expected ", expected.dump(), ", found ", shown(*value),
                                 "; this engine runs no other kind"));
  }
  void fail(Code code, const std::string& what) {
    if (status_.ok()) status_ = Status(code, cat(origin_, ": ", what));
  }

  static std::string shown(const Json& value) {
    std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    if (text.size() > 60) text = text.substr(0, 57) + "...";
    return text;
  }

 private:
  const Json* want(const char* key, bool required) {
    if (!status_.ok()) return nullptr;
    const Json* value = get(key);
    if (!value && required) {
      fail(Code::kInvalidArgument, cat(key, " is missing; copy config.json from the published model"));
    }
    return value;
  }
  void type_error(const char* key, const char* expected, const Json& value) {
    fail(Code::kInvalidArgument, cat(key, ": expected ", expected, ", found ", shown(value)));
  }

  const Json& object_;
  std::string origin_;
  Status status_;
};

void read_quantization(std::string_view origin, Reader& top) {
  const Json* quant = top.get("quantization_config");
  if (!quant) return;  // early NVFP4 repositories removed it
  if (!quant->is_object()) {
    top.fail(Code::kInvalidArgument, cat("quantization_config: expected an object, found ",
                                         Reader::shown(*quant)));
    return;
  }
  Reader reader(*quant, cat(origin, ": quantization_config"));
  if (const Json* method = reader.get("quant_method"); method && *method == "compressed-tensors") {
    reader.fail(Code::kUnsupported,
                "quant_method compressed-tensors cannot be read; use the native or the ModelOpt "
                "(nvidia) checkpoint");
  }
  reader.fixed("quant_method", "fp8");
  reader.fixed("fmt", "e4m3");
  reader.fixed("scale_fmt", "ue8m0");
  reader.fixed("weight_block_size", Json::array({128, 128}));
  if (!reader.status().ok()) top.fail(reader.status().code(), reader.status().message());
}

void read_rope_scaling(const Json& object, std::string_view origin, Reader& top, RopeScaling& out) {
  Reader reader(object, cat(origin, ": rope_scaling"));
  reader.fixed("type", "yarn");
  reader.fixed("rope_type", "yarn");
  reader.real("factor", out.factor, true);
  reader.real("beta_fast", out.beta_fast, false);
  reader.real("beta_slow", out.beta_slow, false);
  reader.integer("original_max_position_embeddings", out.original_max_position_embeddings, true);
  if (!reader.status().ok()) top.fail(reader.status().code(), reader.status().message());
}

void read_hf(std::string_view origin, Reader& reader, ModelConfig& config) {
  reader.fixed("hidden_act", "silu");
  reader.fixed("scoring_func", "sqrtsoftplus");
  reader.fixed("num_key_value_heads", 1);
  reader.fixed("tie_word_embeddings", false);
  reader.fixed("attention_bias", false);
  read_quantization(origin, reader);
  if (const Json* scaling = reader.get("rope_scaling")) {
    if (scaling->is_object()) {
      read_rope_scaling(*scaling, origin, reader, config.rope_scaling);
    } else {
      reader.fail(Code::kInvalidArgument,
                  cat("rope_scaling: expected an object, found ", Reader::shown(*scaling)));
    }
  }
}

void read_native(Reader& reader, ModelConfig& config) {
  reader.fixed("score_func", "sqrtsoftplus");
  reader.fixed("dtype", "fp8");
  reader.fixed("scale_fmt", "ue8m0");
  RopeScaling& yarn = config.rope_scaling;
  reader.real("rope_factor", yarn.factor, false);
  reader.real("beta_fast", yarn.beta_fast, false);
  reader.real("beta_slow", yarn.beta_slow, false);
  reader.integer("original_seq_len", yarn.original_max_position_embeddings, false);
}

// The draft part: which kind, and how many entries of compress_ratios belong to it.
void settle_draft(const Json& json, bool native, Reader& reader, ModelConfig& config) {
  const char* key = native ? "n_mtp_layers" : "num_nextn_predict_layers";
  const auto entries = static_cast<int64_t>(config.compress_ratios.size());
  if (!reader.get(key)) {
    config.num_nextn_predict_layers =
        native ? 1 : std::clamp<int64_t>(entries - config.num_hidden_layers, 0, 1);
  }
  config.draft = config.num_nextn_predict_layers > 0 ? DraftKind::kMtp : DraftKind::kNone;
  for (const auto& [name, value] : json.items()) {
    if (name.rfind("dspark_", 0) != 0) continue;
    config.draft = DraftKind::kDspark;
    config.draft_note =
        "the draft part is DSpark (dspark_* keys), which this engine does not run; the main model "
        "runs without a draft";
  }
}

}  // namespace

Result<ModelConfig> parse_config(std::string_view text, std::string_view origin) {
  try {
    const Json json = Json::parse(text.begin(), text.end(), nullptr, false);
    if (json.is_discarded() || !json.is_object()) {
      return Status(Code::kCorrupt, cat(origin, ": expected a JSON object, found ",
                                        json.is_discarded() ? "invalid JSON" : Reader::shown(json),
                                        "; download the file again"));
    }
    ModelConfig config;
    Reader reader(json, origin);
    const bool native = !reader.get("model_type") && (reader.get("dim") || reader.get("n_layers"));
    if (native) {
      config.vocab_size = 129280;  // default of the published code; the file need not have it
    } else {
      config.model_type.clear();
      reader.text("model_type", config.model_type);
      if (reader.status().ok() && config.model_type != "deepseek_v4") {
        const std::string found =
            config.model_type.empty() ? "no such key" : Reader::shown(config.model_type);
        reader.fail(Code::kUnsupported, cat("model_type: expected \"deepseek_v4\", found ", found,
                                            "; only checkpoints of the DeepSeek-V4 family run"));
      }
    }
    for (const IntField& f : kIntFields) {
      const char* key = native ? f.native : f.hf;
      const bool has_default = native && f.member == &ModelConfig::vocab_size;
      if (key) reader.integer(key, config.*f.member, f.required && !has_default);
    }
    for (const RealField& f : kRealFields) {
      reader.real(native ? f.native : f.hf, config.*f.member, f.required);
    }
    reader.integers("compress_ratios", config.compress_ratios);
    std::string expert_dtype;
    reader.text("expert_dtype", expert_dtype);
    if (expert_dtype == "fp8") {
      config.expert_dtype = ExpertDtype::kFp8;
    } else if (!expert_dtype.empty() && expert_dtype != "fp4") {
      reader.fail(Code::kUnsupported, cat("expert_dtype: expected \"fp4\" or \"fp8\", found ",
                                          Reader::shown(expert_dtype)));
    }
    native ? read_native(reader, config) : read_hf(origin, reader, config);
    settle_draft(json, native, reader, config);
    DSV4_TRY(reader.status());
    DSV4_TRY(validate(config, origin));
    return config;
  } catch (const std::exception& e) {  // out of memory on hostile input
    return Status(Code::kResourceExhausted, cat(origin, ": ", e.what()));
  }
}

Result<ModelConfig> load_config_file(const std::string& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) {
    const bool missing = error == std::errc::no_such_file_or_directory;
    return Status(missing ? Code::kNotFound : Code::kIo,
                  cat(path, ": ", error.message(), "; expected a config.json"));
  }
  if (size > kMaxConfigBytes) {
    return Status(Code::kCorrupt, cat(path, ": expected at most 64 MiB, found ", size, " bytes"));
  }
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) return Status(Code::kIo, cat(path, ": cannot be read; check its permissions"));
  return parse_config(text, path);
}

Result<ModelConfig> load_config(const std::string& dir) {
  std::error_code error;
  const std::string path = dir + "/config.json", native = dir + "/inference/config.json";
  if (std::filesystem::exists(path, error)) return load_config_file(path);
  if (std::filesystem::exists(native, error)) return load_config_file(native);
  return Status(Code::kNotFound, cat(path, ": no such file; -m wants the folder of a checkpoint"));
}

Result<ModelConfig> builtin_config(std::string_view name) {
  const bool pro = name == "pro";
  if (!pro && name != "flash") {
    return Status(Code::kInvalidArgument,
                  cat("config: expected \"flash\", \"pro\" or a file, found \"", name, "\""));
  }
  ModelConfig c;
  c.vocab_size = 129280;
  c.hidden_size = pro ? 7168 : 4096;
  c.num_hidden_layers = pro ? 61 : 43;
  c.num_hash_layers = 3;
  c.num_nextn_predict_layers = 1;
  c.draft = DraftKind::kMtp;
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
    const int64_t first = pro ? 128 : 0;
    c.compress_ratios.push_back(i < 2 ? first : i % 2 == 0 ? 4 : 128);
  }
  c.compress_ratios.push_back(0);
  c.num_attention_heads = pro ? 128 : 64;
  c.head_dim = 512;
  c.qk_rope_head_dim = 64;
  c.q_lora_rank = pro ? 1536 : 1024;
  c.o_groups = pro ? 16 : 8;
  c.o_lora_rank = 1024;
  c.sliding_window = 128;
  c.index_n_heads = 64;
  c.index_head_dim = 128;
  c.index_topk = pro ? 1024 : 512;
  c.n_routed_experts = pro ? 384 : 256;
  c.num_experts_per_tok = 6;
  c.moe_intermediate_size = pro ? 3072 : 2048;
  c.routed_scaling_factor = pro ? 2.5 : 1.5;
  c.swiglu_limit = 10.0;
  c.hc_mult = 4;
  c.hc_sinkhorn_iters = 20;
  c.rope_scaling = {16.0, 32.0, 1.0, 65536};
  return c;
}

std::string to_json(const ModelConfig& c) {
  nlohmann::ordered_json j;
  j["architectures"] = {"DeepseekV4ForCausalLM"};
  j["attention_bias"] = false;
  j["attention_dropout"] = 0.0;
  for (const IntField& f : kIntFields) j[f.hf] = c.*f.member;
  for (const RealField& f : kRealFields) j[f.hf] = c.*f.member;
  std::vector<int64_t> ratios = c.compress_ratios;
  ratios.resize(static_cast<size_t>(c.num_hidden_layers + c.mtp_layers()));
  j["num_nextn_predict_layers"] = c.mtp_layers();
  j["compress_ratios"] = ratios;
  j["expert_dtype"] = c.expert_dtype == ExpertDtype::kFp8 ? "fp8" : "fp4";
  j["hidden_act"] = "silu";
  j["initializer_range"] = 0.02;
  j["model_type"] = c.model_type;
  j["norm_topk_prob"] = true;
  j["num_key_value_heads"] = 1;
  j["quantization_config"] = {{"activation_scheme", "dynamic"},
                              {"fmt", "e4m3"},
                              {"quant_method", "fp8"},
                              {"scale_fmt", "ue8m0"},
                              {"weight_block_size", {128, 128}}};
  if (const RopeScaling& yarn = c.rope_scaling; yarn.original_max_position_embeddings > 0) {
    j["rope_scaling"] = {
        {"beta_fast", yarn.beta_fast},
        {"beta_slow", yarn.beta_slow},
        {"factor", yarn.factor},
        {"original_max_position_embeddings", yarn.original_max_position_embeddings},
        {"type", "yarn"}};
  }
  j["scoring_func"] = "sqrtsoftplus";
  j["tie_word_embeddings"] = false;
  j["topk_method"] = "noaux_tc";
  j["torch_dtype"] = "bfloat16";
  j["transformers_version"] = "4.57.1";
  j["use_cache"] = true;
  return j.dump(2) + "\n";
}

}  // namespace dsv4
