// Checks of tensor contents that every loader must make before it uses them.
#pragma once

#include <string_view>

#include "base/tensor.h"
#include "dsv4/status.h"

namespace dsv4 {

// A scale that is not a number would turn a whole block, then the answer, into NaN. Scans a tensor
// of F8_E8M0 (code 255), F8_E4M3 (codes 0x7f, 0xff) or F32 scales (NaN, infinite) in host memory.
Status check_scales(const TensorRef& scales, std::string_view name);

}  // namespace dsv4
