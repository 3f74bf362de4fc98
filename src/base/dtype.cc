#include "base/dtype.h"

#include <array>
#include <utility>

namespace dsv4 {
namespace {

constexpr std::array<std::pair<DType, std::string_view>, 10> kNames = {{
    {DType::kF32, "F32"},
    {DType::kBF16, "BF16"},
    {DType::kF16, "F16"},
    {DType::kE4M3, "F8_E4M3"},
    {DType::kE8M0, "F8_E8M0"},
    {DType::kI64, "I64"},
    {DType::kI32, "I32"},
    {DType::kI8, "I8"},
    {DType::kU8, "U8"},
    {DType::kBool, "BOOL"},
}};

}  // namespace

std::string_view dtype_name(DType t) {
  for (const auto& [type, name] : kNames) {
    if (type == t) return name;
  }
  return "?";
}

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const auto& [type, spelled] : kNames) {
    if (spelled == name) return type;
  }
  return std::nullopt;
}

}  // namespace dsv4
