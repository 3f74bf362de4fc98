// Which files make up a checkpoint.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "dsv4/status.h"

namespace dsv4 {

struct ShardList {
  std::vector<std::string> files;  // paths, sorted
  // From model.safetensors.index.json where there is one: tensor name -> index into files.
  std::unordered_map<std::string, uint32_t> weight_map;
  std::string index_path;  // empty without an index
};

Result<ShardList> list_shards(const std::string& path);

// The text of a model.safetensors.index.json; file names must be plain names inside `dir`.
Result<ShardList> parse_shard_index(std::string_view json, const std::string& dir,
                                    const std::string& index_path);

}  // namespace dsv4
