// Moments on a stream in the device's time.
#pragma once

#include <memory>

#include "ops/backend.h"

namespace dsv4::cuda {

// Each mark is a kernel of one thread that writes the time down. An event would do, but one between two
// kernels of a graph takes 5 us.
Result<std::unique_ptr<Marks>> make_marks(int64_t n);

}  // namespace dsv4::cuda
