// Element types as they occur in files and in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace dsv4 {

enum class DType : uint8_t { kF32, kBF16, kF16, kE4M3, kE8M0, kI64, kI32, kI8, kU8, kBool };

constexpr size_t dtype_size(DType t) {
  switch (t) {
    case DType::kI64: return 8;
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kBF16:
    case DType::kF16: return 2;
    case DType::kE4M3:
    case DType::kE8M0:
    case DType::kI8:
    case DType::kU8:
    case DType::kBool: return 1;
  }
  return 0;
}

// The spelling of safetensors headers: "F32", "BF16", "F8_E4M3", "F8_E8M0", "I64", ...
std::string_view dtype_name(DType t);
std::optional<DType> dtype_from_name(std::string_view name);

}  // namespace dsv4
