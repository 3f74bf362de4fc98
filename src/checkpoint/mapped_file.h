// A file mapped read-only. Nothing is read until its pages are touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/tensor.h"
#include "dsv4/status.h"

namespace dsv4 {

class MappedFile {
 public:
  static Result<MappedFile> open(const std::string& path);

  MappedFile(MappedFile&& o) noexcept;
  MappedFile& operator=(MappedFile&& o) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const std::string& path() const { return path_; }
  std::span<const uint8_t> bytes() const { return {static_cast<const uint8_t*>(data_), size_}; }

 private:
  MappedFile(std::string path, void* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}

  std::string path_;
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Mapped pages that lie wholly inside the tensor leave this process's memory; touching them again
// reads the file again. For code that streams through a checkpoint larger than memory.
void drop_pages(const TensorRef& tensor);

}  // namespace dsv4
