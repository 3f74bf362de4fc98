#include "api/generation_config.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/str.h"
#include "engine/sampler.h"

namespace dsv4 {
namespace {

// null and absent keep the default, as in Hugging Face files.
template <class T>
Status read(const nlohmann::json& json, const std::string& path, const char* key, T& out) {
  const auto it = json.find(key);
  if (it == json.end() || it->is_null()) return {};
  // Beyond 2^30 nothing has a meaning, and an integer could not hold it.
  if (!it->is_number() || !(std::abs(it->get<double>()) < 0x1p30)) {
    return Status(Code::kCorrupt,
                  cat(path, ": ", key, " is ", it->dump().substr(0, 40), ": expected a number"));
  }
  out = it->get<T>();
  return {};
}

}  // namespace

Result<SamplingParams> load_generation_config(const std::string& dir, int64_t vocab_size) {
  SamplingParams p;
  const std::string path = dir + "/generation_config.json";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return p;
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  const nlohmann::json json = nlohmann::json::parse(text.str(), nullptr, false);
  if (!file || !json.is_object()) {
    return Status(Code::kCorrupt, cat(path,
                                      ": expected a JSON object; remove the file to sample with "
                                      "temperature 1"));
  }
  DSV4_TRY(read(json, path, "temperature", p.temperature));
  DSV4_TRY(read(json, path, "top_k", p.top_k));
  DSV4_TRY(read(json, path, "top_p", p.top_p));
  DSV4_TRY(read(json, path, "min_p", p.min_p));
  DSV4_TRY(read(json, path, "repetition_penalty", p.repetition_penalty));
  if (json.value("do_sample", nlohmann::json(true)) == false) p.temperature = 0;
  if (const Status status = validate_sampling(p, vocab_size); !status.ok()) {
    return Status(Code::kCorrupt, cat(path, ": ", status.message()));
  }
  return p;
}

}  // namespace dsv4
