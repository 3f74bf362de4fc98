// Checkpoint: the mapped files of a model and a typed lookup by name. No weight is read here: a
// caller asks for a tensor with the dtype and shape it needs, and gets a view of the mapping.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/tensor.h"
#include "checkpoint/mapped_file.h"
#include "checkpoint/safetensors.h"
#include "dsv4/status.h"

namespace dsv4 {

class Checkpoint {
 public:
  // `path` is a .safetensors file, or a folder with model.safetensors, or with
  // model.safetensors.index.json and its shards, or with model-K-of-N.safetensors.
  static Result<Checkpoint> open(const std::string& path, SafetensorsOptions options = {});

  const std::string& path() const { return path_; }

  // In file order: by shard, then by offset.
  const std::vector<TensorEntry>& entries() const { return entries_; }
  const TensorEntry* find(std::string_view name) const;
  bool contains(std::string_view name) const { return find(name) != nullptr; }

  // The one tensor of that name, which must have that dtype and shape: its header entry, or its data.
  Result<const TensorEntry*> entry(std::string_view name, DType dtype, const Shape& shape) const;
  Result<TensorRef> tensor(std::string_view name, DType dtype, const Shape& shape) const;
  // A view of what `find` or `entries` gave; an error where the file ends before its data.
  Result<TensorRef> view(const TensorEntry& entry) const;

  size_t shard_count() const { return shards_.size(); }
  const std::string& shard_path(uint32_t shard) const { return shards_[shard].path(); }
  // Payload of all tensors.
  uint64_t data_bytes() const { return data_bytes_; }

 private:
  Checkpoint() = default;
  Status add_shard(const std::string& path, SafetensorsOptions options);
  Status index_names();

  std::string path_;
  std::vector<MappedFile> shards_;
  std::vector<TensorEntry> entries_;
  std::unordered_map<std::string_view, uint32_t> by_name_;  // keys view entries_[i].name
  uint64_t data_bytes_ = 0;
};

}  // namespace dsv4
