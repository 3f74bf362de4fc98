// What this GPU can do at most, measured now.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/backend.h"

namespace dsv4::cuda {

// Takes less than a second and up to 4 GiB, or half of what is available.
Result<Ceilings> measure_ceilings(cudaStream_t stream, int multiprocessors, int64_t cache_bytes, size_t available);

}  // namespace dsv4::cuda
