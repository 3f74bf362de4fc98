// The CUDA backend: one NVIDIA GPU of compute capability 9.0 (Hopper). Every op runs on the device; a
// step neither waits for the device nor branches on what is there, so it can be captured as a graph.
#pragma once

#include <memory>

#include "dsv4/status.h"
#include "ops/backend.h"

namespace dsv4 {

struct CudaOptions {
  int device = -1;  // -1: $DSV4_CUDA_DEVICE, else 0
};

// kUnsupported where there is no driver, no such device, or one that this build has no code for.
Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaOptions& options = {});

}  // namespace dsv4
