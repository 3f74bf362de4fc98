// Buffer: owns one allocation. Whoever made it supplies the way to free it.
#pragma once

#include <cstddef>
#include <utility>

#include "base/tensor.h"

namespace dsv4 {

class Buffer {
 public:
  using Free = void (*)(void* data, size_t bytes);

  Buffer() = default;
  Buffer(void* data, size_t bytes, MemoryKind memory, Free free)
      : data_(data), bytes_(bytes), memory_(memory), free_(free) {}
  Buffer(Buffer&& o) noexcept { swap(o); }
  Buffer& operator=(Buffer&& o) noexcept {
    Buffer(std::move(o)).swap(*this);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_) free_(data_, bytes_);
  }

  void* data() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }
  MemoryKind memory() const { return memory_; }

 private:
  void swap(Buffer& o) {
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    std::swap(memory_, o.memory_);
    std::swap(free_, o.free_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
  MemoryKind memory_ = MemoryKind::kHost;
  Free free_ = nullptr;
};

}  // namespace dsv4
