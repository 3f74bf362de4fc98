// The folder of a new checkpoint. Until keep() is called, what was added is removed again.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/safetensors.h"
#include "dsv4/status.h"

namespace dsv4 {

class OutputDir {
 public:
  // Makes the folder; refuses one that holds safetensors files or a config.json.
  static Result<OutputDir> create(const std::string& path);

  OutputDir(OutputDir&&) = default;
  OutputDir& operator=(OutputDir&&) = default;
  OutputDir(const OutputDir&) = delete;
  OutputDir& operator=(const OutputDir&) = delete;
  ~OutputDir();

  // Path of a new file in it, which is removed unless keep() is called.
  std::string add(std::string_view name);
  Status write(std::string_view name, std::string_view content);
  void keep() { added_.clear(); }

 private:
  explicit OutputDir(std::string path) : path_(std::move(path)) {}

  std::string path_;
  std::vector<std::string> added_;
};

// "model-00003-of-00046.safetensors", `index` from 0; "model.safetensors" for a count of 1.
std::string shard_name(uint32_t index, uint32_t count);

// Text of model.safetensors.index.json: shard s holds `shards[s]`.
std::string shard_index_json(const std::vector<std::vector<TensorSpec>>& shards);

}  // namespace dsv4
