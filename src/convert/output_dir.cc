#include "convert/output_dir.h"

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/str.h"
#include "checkpoint/output_file.h"

namespace dsv4 {

namespace fs = std::filesystem;

Result<OutputDir> OutputDir::create(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) {
    return Status(Code::kIo, cat(path, ": the folder cannot be made (", error.message(),
                                 "); choose another place"));
  }
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name == "config.json" || it->path().extension() == ".safetensors") {
      return Status(Code::kInvalidArgument,
                    cat(path, ": expected a folder without a checkpoint, found ", name,
                        "; remove it or choose another folder"));
    }
  }
  if (error) return Status(Code::kIo, cat(path, ": ", error.message()));
  return OutputDir(path);
}

OutputDir::~OutputDir() {
  std::error_code ignored;
  for (const std::string& file : added_) fs::remove(file, ignored);
}

std::string OutputDir::add(std::string_view name) {
  added_.push_back(cat(path_, "/", name));
  return added_.back();
}

Status OutputDir::write(std::string_view name, std::string_view content) {
  return write_file(add(name), content);
}

std::string shard_name(uint32_t index, uint32_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05u-of-%05u.safetensors", index + 1, count);
  return name;
}

std::string shard_index_json(const std::vector<std::vector<TensorSpec>>& shards) {
  nlohmann::json map = nlohmann::json::object();
  uint64_t total = 0;
  for (size_t s = 0; s < shards.size(); ++s) {
    const std::string file =
        shard_name(static_cast<uint32_t>(s), static_cast<uint32_t>(shards.size()));
    for (const TensorSpec& t : shards[s]) {
      map[t.name] = file;
      total += t.bytes();
    }
  }
  const nlohmann::json index = {{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}};
  return index.dump(2) + "\n";
}

}  // namespace dsv4
