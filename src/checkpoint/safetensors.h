// The header of one safetensors file: 8 bytes little-endian length N, N bytes of JSON
// {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...}, then the data.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/tensor.h"
#include "dsv4/status.h"

namespace dsv4 {

struct TensorEntry {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  uint32_t shard = 0;   // index of its file
  uint64_t offset = 0;  // first byte, from the beginning of the file
  uint64_t bytes = 0;
};

// A tensor as it shall be written, or is expected to be found.
struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;

  uint64_t bytes() const {
    return static_cast<uint64_t>(shape.elements()) * static_cast<uint64_t>(dtype_size(dtype));
  }
};

struct SafetensorsHeader {
  std::vector<TensorEntry> entries;  // in the order of their data; shard is 0
  std::vector<std::pair<std::string, std::string>> metadata;
  uint64_t data_begin = 0;  // from the beginning of the file
  uint64_t data_bytes = 0;
};

struct SafetensorsOptions {
  // Accept a file that ends right behind its header: its shapes are known, its data are not. Copies
  // of the headers alone are enough to inspect a model of hundreds of gigabytes. A file that ends
  // inside its data is a broken download either way.
  bool allow_header_only = false;
};

// `image` is the beginning of the file, at least its header; `file_size` the size of the whole file.
// Every offset, size and product is checked: tensors fill the data section without hole or overlap.
// `file` names it in errors. The bytes may be hostile.
Result<SafetensorsHeader> parse_safetensors_header(std::string_view file,
                                                   std::span<const uint8_t> image,
                                                   uint64_t file_size,
                                                   SafetensorsOptions options = {});

}  // namespace dsv4
