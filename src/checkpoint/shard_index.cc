#include "checkpoint/shard_index.h"

#include <algorithm>
#include <charconv>
#include <exception>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/str.h"
#include "checkpoint/mapped_file.h"

namespace dsv4 {
namespace {

namespace fs = std::filesystem;

// {"metadata": anything, "weight_map": {"tensor": "file", ...}}. The metadata are not trusted:
// re-quantised repositories carry stale totals.
class IndexHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<std::pair<std::string, std::string>> pairs;
  size_t error_at = 0;

  bool start_object(std::size_t) override { return open(); }
  bool start_array(std::size_t) override { return depth_ > 0 && open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(std::string& text) override {
    if (depth_ == 1) in_map_ = text == "weight_map";
    if (depth_ == 2 && in_map_) pairs.emplace_back(std::move(text), std::string());
    return true;
  }
  bool string(std::string& text) override {
    if (depth_ != 2 || !in_map_ || pairs.empty()) return other();
    pairs.back().second = std::move(text);
    return true;
  }
  bool null() override { return other(); }
  bool boolean(bool) override { return other(); }
  bool number_integer(int64_t) override { return other(); }
  bool number_unsigned(uint64_t) override { return other(); }
  bool number_float(double, const std::string&) override { return other(); }
  bool binary(nlohmann::json::binary_t&) override { return other(); }
  bool parse_error(std::size_t at, const std::string&, const nlohmann::json::exception&) override {
    error_at = at;
    return false;
  }

 private:
  bool other() const { return depth_ >= 1 && !in_map_; }
  bool open() {
    const bool allowed = depth_ < 16 && (!in_map_ || depth_ == 1);
    ++depth_;
    return allowed;
  }
  bool close() {
    --depth_;
    return true;
  }
  int depth_ = 0;
  bool in_map_ = false;
};

// "model-00003-of-00046.safetensors" -> {3, 46}
bool parse_shard_name(std::string_view name, uint32_t& k, uint32_t& n) {
  constexpr std::string_view kHead = "model-", kOf = "-of-", kTail = ".safetensors";
  if (!name.starts_with(kHead) || !name.ends_with(kTail)) return false;
  name.remove_prefix(kHead.size());
  name.remove_suffix(kTail.size());
  const size_t of = name.find(kOf);
  if (of == std::string_view::npos) return false;
  const auto number = [](std::string_view digits, uint32_t& out) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), out);
    return error == std::errc() && end == digits.data() + digits.size();
  };
  return number(name.substr(0, of), k) && number(name.substr(of + kOf.size()), n);
}

Result<ShardList> glob_shards(const std::string& dir) {
  std::map<uint32_t, std::string> found;
  uint32_t total = 0;
  std::error_code error;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    uint32_t k = 0, n = 0;
    const std::string name = it->path().filename().string();
    if (!parse_shard_name(name, k, n)) continue;
    if (total != 0 && n != total) {
      return Status(Code::kCorrupt, cat(dir, ": expected shards of one checkpoint, found both -of-",
                                        total, " and -of-", n, "; remove the others"));
    }
    total = n;
    found[k] = dir + "/" + name;
  }
  if (error) return Status(Code::kIo, cat(dir, ": ", error.message()));
  if (found.empty()) {
    return Status(Code::kNotFound,
                  cat(dir, ": expected model.safetensors or model-K-of-N.safetensors, found neither; "
                           "-m wants the folder of a checkpoint"));
  }
  ShardList list;
  for (uint32_t k = 1; k <= total; ++k) {
    const auto it = found.find(k);
    if (it == found.end()) {
      return Status(Code::kNotFound, cat(dir, ": expected shards 1 to ", total, ", found no shard ", k,
                                         "; finish the download"));
    }
    list.files.push_back(it->second);
  }
  if (list.files.size() != found.size()) {
    return Status(Code::kCorrupt, cat(dir, ": expected shards 1 to ", total, ", found shard ",
                                      found.rbegin()->first));
  }
  return list;
}

Result<ShardList> parse_index(std::string_view json, const std::string& dir,
                              const std::string& index_path) {
  IndexHandler handler;
  const bool parsed = json.find('\0') == std::string_view::npos &&
                      nlohmann::json::sax_parse(json.begin(), json.end(), &handler);
  if (!parsed) {
    return Status(Code::kCorrupt,
                  cat(index_path, ": expected {\"weight_map\": {tensor: file}}, found other JSON",
                      handler.error_at ? cat(" (byte ", handler.error_at, ")") : std::string(),
                      "; download the file again"));
  }
  ShardList list;
  list.index_path = index_path;
  std::map<std::string, uint32_t> files;
  for (const auto& [tensor, file] : handler.pairs) {
    if (file.empty() || file == "." || file == ".." || file.find('/') != std::string::npos ||
        file.find('\0') != std::string::npos) {
      return Status(Code::kCorrupt, cat(index_path, ": ", tensor, ": expected a file name, found \"",
                                        file.substr(0, file.find('\0')), "\""));
    }
    files.emplace(file, 0);
  }
  if (files.empty()) {
    return Status(Code::kCorrupt, cat(index_path, ": expected a weight_map, found none"));
  }
  for (auto& [file, id] : files) {
    id = static_cast<uint32_t>(list.files.size());
    list.files.push_back(dir + "/" + file);
  }
  list.weight_map.reserve(handler.pairs.size());
  for (auto& [tensor, file] : handler.pairs) {
    if (!list.weight_map.emplace(std::move(tensor), files[file]).second) {
      return Status(Code::kCorrupt, cat(index_path, ": a tensor is named twice, in ", file));
    }
  }
  return list;
}

}  // namespace

Result<ShardList> parse_shard_index(std::string_view json, const std::string& dir,
                                    const std::string& index_path) {
  try {
    return parse_index(json, dir, index_path);
  } catch (const std::exception& e) {  // out of memory on hostile input
    return Status(Code::kResourceExhausted, cat(index_path, ": ", e.what()));
  }
}

Result<ShardList> list_shards(const std::string& path) {
  try {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (!fs::exists(status)) {
      return Status(Code::kNotFound, cat(path, ": no such file or folder; -m wants a checkpoint"));
    }
    ShardList list;
    if (!fs::is_directory(status)) {
      list.files = {path};
      return list;
    }
    if (std::string single = path + "/model.safetensors"; fs::exists(single, error)) {
      list.files = {std::move(single)};
      return list;
    }
    const std::string index_path = path + "/model.safetensors.index.json";
    if (!fs::exists(index_path, error)) return glob_shards(path);
    DSV4_ASSIGN(const MappedFile index, MappedFile::open(index_path));
    const auto bytes = index.bytes();
    return parse_shard_index({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path,
                             index_path);
  } catch (const std::exception& e) {  // file system errors
    return Status(Code::kIo, cat(path, ": ", e.what()));
  }
}

}  // namespace dsv4
