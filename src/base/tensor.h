// Shape and TensorRef: what a piece of memory means. Neither owns anything.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "base/dtype.h"

namespace dsv4 {

inline constexpr int kMaxRank = 5;

struct Shape {
  int rank = 0;
  std::array<int64_t, kMaxRank> dim{};

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) {
    for (int64_t d : dims) dim[static_cast<size_t>(rank++)] = d;
  }
  int64_t operator[](int i) const { return dim[static_cast<size_t>(i)]; }
  int64_t elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= dim[static_cast<size_t>(i)];
    return n;
  }
  bool operator==(const Shape& o) const {
    if (rank != o.rank) return false;
    for (int i = 0; i < rank; ++i) {
      if ((*this)[i] != o[i]) return false;
    }
    return true;
  }
};

// "[4096, 1024]"; a scalar is "[]".
std::string to_string(const Shape& shape);

enum class MemoryKind : uint8_t { kHost, kDevice };

// Row-major, contiguous view of `shape` elements of `dtype`. `data` may be unaligned: published
// files align tensors to their element size at most, relative to an unaligned data section.
struct TensorRef {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;
  MemoryKind memory = MemoryKind::kHost;

  size_t bytes() const { return static_cast<size_t>(shape.elements()) * dtype_size(dtype); }
};

}  // namespace dsv4
