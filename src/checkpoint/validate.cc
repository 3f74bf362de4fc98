#include "checkpoint/validate.h"

#include <cmath>
#include <cstring>

#include "base/str.h"

namespace dsv4 {
namespace {

// Index of the first NaN, or -1.
int64_t find_nan(const TensorRef& t) {
  const auto* data = static_cast<const uint8_t*>(t.data);
  const size_t n = t.bytes();
  const auto first = [&](int code) -> int64_t {
    const void* at = n == 0 ? nullptr : std::memchr(data, code, n);
    return at ? static_cast<const uint8_t*>(at) - data : -1;
  };
  if (t.dtype == DType::kE8M0) return first(0xff);
  if (t.dtype == DType::kE4M3) {
    const int64_t positive = first(0x7f);
    return positive >= 0 ? positive : first(0xff);
  }
  if (t.dtype == DType::kF32) {
    for (int64_t i = 0; i < t.shape.elements(); ++i) {
      float value;
      std::memcpy(&value, data + static_cast<size_t>(i) * sizeof value, sizeof value);
      if (!std::isfinite(value)) return i;
    }
  }
  return -1;
}

}  // namespace

Status check_scales(const TensorRef& scales, std::string_view name) {
  const int64_t at = find_nan(scales);
  if (at < 0) return {};
  std::string index;
  int64_t rest = at;
  for (int i = scales.shape.rank - 1; i >= 0; --i) {
    index = cat(rest % scales.shape[i], index.empty() ? "" : ", ", index);
    rest /= scales.shape[i];
  }
  return Status(Code::kCorrupt, cat(name, ": expected finite ", dtype_name(scales.dtype),
                                    " scales, found NaN at [", index,
                                    "]; the file is damaged, download it again"));
}

}  // namespace dsv4
