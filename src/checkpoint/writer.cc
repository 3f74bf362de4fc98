#include "checkpoint/writer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/str.h"

namespace dsv4 {
namespace {

int published_rank(DType dtype) {
  switch (dtype) {
    case DType::kI64: return 0;
    case DType::kF32: return 1;
    case DType::kI32: return 2;
    case DType::kBF16: return 3;
    case DType::kF16: return 4;
    case DType::kE8M0: return 5;
    case DType::kE4M3: return 6;
    case DType::kI8: return 7;
    case DType::kU8: return 8;
    case DType::kBool: return 9;
  }
  return 10;
}

std::string json_string(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

uint64_t data_bytes(const std::vector<TensorSpec>& tensors) {
  uint64_t bytes = 0;
  for (const TensorSpec& t : tensors) bytes += t.bytes();
  return bytes;
}

}  // namespace

void sort_as_published(std::vector<TensorSpec>& tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorSpec& a, const TensorSpec& b) {
    const int x = published_rank(a.dtype), y = published_rank(b.dtype);
    return x != y ? x < y : a.name < b.name;
  });
}

std::string safetensors_header(const std::vector<TensorSpec>& tensors,
                               const std::vector<std::pair<std::string, std::string>>& metadata) {
  std::string json = "{";
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) json += cat(json_string(key), ":", json_string(value), ",");
    json.back() = '}';
    json += ",";
  }
  uint64_t begin = 0;
  for (const TensorSpec& t : tensors) {
    json += cat(json_string(t.name), ":{\"dtype\":\"", dtype_name(t.dtype), "\",\"shape\":[");
    for (int i = 0; i < t.shape.rank; ++i) json += cat(i ? "," : "", t.shape[i]);
    const uint64_t end = begin + t.bytes();
    json += cat("],\"data_offsets\":[", begin, ",", end, "]},");
    begin = end;
  }
  if (json.back() == ',') json.pop_back();
  json += "}";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  std::string out(8, '\0');
  for (size_t i = 0; i < 8; ++i) {
    out[i] = static_cast<char>(static_cast<uint8_t>(json.size() >> (8 * i)));
  }
  return out + json;
}

Result<SafetensorsWriter> SafetensorsWriter::create(
    const std::string& path, std::vector<TensorSpec> tensors,
    const std::vector<std::pair<std::string, std::string>>& metadata) {
  sort_as_published(tensors);
  for (size_t i = 1; i < tensors.size(); ++i) {
    if (tensors[i].name == tensors[i - 1].name) {
      return Status(Code::kInternal, cat(path, ": ", tensors[i].name, ": planned twice"));
    }
  }
  const std::string header = safetensors_header(tensors, metadata);
  const uint64_t bytes = data_bytes(tensors);
  DSV4_ASSIGN(OutputFile file, OutputFile::create(path, header.size() + bytes));
  DSV4_TRY(file.write(header.data(), header.size()));
  return SafetensorsWriter(std::move(file), std::move(tensors), bytes);
}

Status SafetensorsWriter::append(const void* data, size_t bytes) {
  if (bytes > missing_) {
    return Status(Code::kInternal, cat(file_.path(), ": ", bytes - missing_,
                                       " bytes more than the planned tensors hold"));
  }
  missing_ -= bytes;
  return file_.write(data, bytes);
}

Status SafetensorsWriter::finish() {
  if (missing_ != 0) {
    return Status(Code::kInternal, cat(file_.path(), ": ", missing_, " planned bytes are missing"));
  }
  return file_.commit();
}

Status write_safetensors(const std::string& path, const std::vector<TensorSpec>& tensors,
                         std::span<const void* const> data) {
  DSV4_ASSIGN(SafetensorsWriter writer, SafetensorsWriter::create(path, tensors));
  std::unordered_map<std::string_view, const void*> by_name;
  for (size_t i = 0; i < tensors.size(); ++i) by_name[tensors[i].name] = data[i];
  for (const TensorSpec& t : writer.tensors()) DSV4_TRY(writer.append(by_name[t.name], t.bytes()));
  return writer.finish();
}

}  // namespace dsv4
