// Copies that are part of a recorded step.
#pragma once

#include <cuda_runtime_api.h>

#include "dsv4/status.h"

namespace dsv4::cuda {

// The same as cudaMemcpyAsync between pinned host memory and the device's, by a kernel: a graph of kernels
// alone takes the host 3 us to launch, one with a copy node 6 (docs/kernels/cuda_decode.md).
Status copy_by_kernel(cudaStream_t stream, void* to, const void* from, size_t bytes);

}  // namespace dsv4::cuda
