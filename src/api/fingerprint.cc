#include "api/fingerprint.h"

#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>

namespace dsv4 {
namespace {

void add_text(Hasher& hash, std::string_view text) {
  hash.add(text.data(), text.size());
}

void add_file(Hasher& hash, const std::filesystem::path& path) {
  std::error_code ignored;
  const uint64_t size = std::filesystem::file_size(path, ignored);
  const auto date = std::filesystem::last_write_time(path, ignored).time_since_epoch().count();
  hash.add(&size, sizeof size).add(&date, sizeof date);
}

}  // namespace

Hash128 fingerprint(const std::string& model_dir, const Checkpoint& checkpoint,
                    const Backend& backend) {
  Hasher hash;
  std::ifstream config(model_dir + "/config.json", std::ios::binary);
  std::stringstream text;
  text << config.rdbuf();
  add_text(hash, text.str());
  for (uint32_t i = 0; i < checkpoint.shard_count(); ++i) add_file(hash, checkpoint.shard_path(i));
  for (const TensorEntry& entry : checkpoint.entries()) add_text(hash, entry.name);
  add_text(hash, backend.name());
  add_text(hash, backend.describe());
  add_text(hash, kv_format_name(backend.kv_format()));
  add_file(hash, "/proc/self/exe");
  return hash.finish();
}

}  // namespace dsv4
