// Writes one safetensors file as a stream: the header is planned from a list of tensors, then their
// bytes follow in the published order.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/output_file.h"
#include "checkpoint/safetensors.h"
#include "dsv4/status.h"

namespace dsv4 {

// The order of published files: by dtype (I64, F32, I32, BF16, F16, F8_E8M0, F8_E4M3, I8, U8), then
// by name. Every tensor is then aligned to its element size.
void sort_as_published(std::vector<TensorSpec>& tensors);

// The bytes before the data: length and JSON, padded with spaces to a multiple of 8. `tensors` in the
// order of their data.
std::string safetensors_header(const std::vector<TensorSpec>& tensors,
                               const std::vector<std::pair<std::string, std::string>>& metadata = {});

class SafetensorsWriter {
 public:
  // Sorts `tensors` as published and writes the header. Nothing appears at `path` before finish().
  static Result<SafetensorsWriter> create(
      const std::string& path, std::vector<TensorSpec> tensors,
      const std::vector<std::pair<std::string, std::string>>& metadata = {});

  // In the order in which append() expects their bytes.
  const std::vector<TensorSpec>& tensors() const { return tensors_; }

  // The next bytes, in pieces of any size; may span tensors.
  Status append(const void* data, size_t bytes);
  // Fails unless every tensor is complete.
  Status finish();

 private:
  SafetensorsWriter(OutputFile file, std::vector<TensorSpec> tensors, uint64_t data_bytes)
      : file_(std::move(file)), tensors_(std::move(tensors)), missing_(data_bytes) {}

  OutputFile file_;
  std::vector<TensorSpec> tensors_;
  uint64_t missing_ = 0;  // bytes still to come
};

// All at once, for small files. `data` holds one contiguous host buffer per tensor, in the caller's
// order of `tensors`.
Status write_safetensors(const std::string& path, const std::vector<TensorSpec>& tensors,
                         std::span<const void* const> data);

}  // namespace dsv4
