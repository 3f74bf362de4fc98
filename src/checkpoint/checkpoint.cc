#include "checkpoint/checkpoint.h"

#include <iterator>

#include "base/str.h"
#include "checkpoint/shard_index.h"

namespace dsv4 {
namespace {

std::string described(DType dtype, const Shape& shape) {
  return cat(dtype_name(dtype), " ", to_string(shape));
}

// Suffixes of a format that stores experts under other names.
std::string_view missing_hint(const Checkpoint& checkpoint, std::string_view name) {
  if (name.ends_with(".weight") && checkpoint.contains(cat(name, "_packed"))) {
    return "this is a compressed-tensors export; use the native or the ModelOpt (nvidia) checkpoint";
  }
  return "check that the download is complete and that config.json belongs to it";
}

}  // namespace

Result<Checkpoint> Checkpoint::open(const std::string& path, SafetensorsOptions options) {
  DSV4_ASSIGN(const ShardList list, list_shards(path));
  Checkpoint checkpoint;
  checkpoint.path_ = path;
  for (const std::string& file : list.files) {
    Status status = checkpoint.add_shard(file, options);
    if (status.code() == Code::kNotFound && !list.index_path.empty()) {
      return status.with_context(cat(list.index_path, " names a missing shard"));
    }
    DSV4_TRY(status);
  }
  DSV4_TRY(checkpoint.index_names());
  for (const auto& [name, shard] : list.weight_map) {
    const TensorEntry* entry = checkpoint.find(name);
    if (entry && entry->shard == shard) continue;
    return Status(Code::kCorrupt,
                  cat(list.index_path, ": ", name, ": expected in ", list.files[shard], ", found ",
                      entry ? cat("in ", checkpoint.shard_path(entry->shard)) : "in no shard",
                      "; download the index and its shards from one revision"));
  }
  return checkpoint;
}

Status Checkpoint::add_shard(const std::string& path, SafetensorsOptions options) {
  DSV4_ASSIGN(MappedFile file, MappedFile::open(path));
  DSV4_ASSIGN(SafetensorsHeader header,
              parse_safetensors_header(path, file.bytes(), file.bytes().size(), options));
  const auto shard = static_cast<uint32_t>(shards_.size());
  for (TensorEntry& entry : header.entries) entry.shard = shard;
  std::move(header.entries.begin(), header.entries.end(), std::back_inserter(entries_));
  data_bytes_ += header.data_bytes;
  shards_.push_back(std::move(file));
  return {};
}

Status Checkpoint::index_names() {
  by_name_.reserve(entries_.size());
  for (uint32_t i = 0; i < entries_.size(); ++i) {
    const TensorEntry& entry = entries_[i];
    const auto [it, inserted] = by_name_.emplace(entry.name, i);
    if (!inserted) {
      return Status(Code::kCorrupt,
                    cat(shard_path(entry.shard), ": ", entry.name, ": also in ",
                        shard_path(entries_[it->second].shard), "; remove one of the files"));
    }
  }
  return {};
}

const TensorEntry* Checkpoint::find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &entries_[it->second];
}

Result<const TensorEntry*> Checkpoint::entry(std::string_view name, DType dtype,
                                             const Shape& shape) const {
  const TensorEntry* entry = find(name);
  if (!entry) {
    return Status(Code::kNotFound, cat(path_, ": ", name, ": expected ", described(dtype, shape),
                                       ", found no such tensor; ", missing_hint(*this, name)));
  }
  if (entry->dtype != dtype || !(entry->shape == shape)) {
    return Status(Code::kInvalidArgument,
                  cat(shard_path(entry->shard), ": ", name, ": expected ", described(dtype, shape),
                      ", found ", described(entry->dtype, entry->shape),
                      "; check that config.json belongs to this checkpoint"));
  }
  return entry;
}

Result<TensorRef> Checkpoint::tensor(std::string_view name, DType dtype, const Shape& shape) const {
  DSV4_ASSIGN(const TensorEntry* found, entry(name, dtype, shape));
  return view(*found);
}

Result<TensorRef> Checkpoint::view(const TensorEntry& entry) const {
  const auto bytes = shards_[entry.shard].bytes();
  if (entry.bytes > bytes.size() || entry.offset > bytes.size() - entry.bytes) {
    return Status(Code::kCorrupt, cat(shard_path(entry.shard), ": ", entry.name, ": expected data to byte ",
                                      entry.offset + entry.bytes, ", found a file of ", bytes.size(),
                                      " bytes; this is a copy of the header, get the whole file"));
  }
  TensorRef ref;
  ref.data = bytes.data() + entry.offset;
  ref.dtype = entry.dtype;
  ref.shape = entry.shape;
  return ref;
}

}  // namespace dsv4
