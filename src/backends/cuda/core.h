// What launchers need besides their arguments: the stream, device limits, errors as values.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <string_view>

#include "dsv4/status.h"
#include "ops/context.h"

namespace dsv4::cuda {

// "cuda: <what>: <the runtime's own message>", with a hint where memory ran out.
Status check(cudaError_t error, std::string_view what);

// After a launch: its own error. What went wrong inside kernels shows at the next synchronize.
inline Status launched(std::string_view kernel) { return check(cudaPeekAtLastError(), kernel); }

struct CudaStream : Stream {
  cudaStream_t handle = nullptr;
  ~CudaStream() override;
};

inline cudaStream_t stream(OpContext& ctx) { return static_cast<CudaStream&>(ctx.stream).handle; }

inline constexpr int kMaxSharedBytes = 227 * 1024;  // of one block, sm_90

// Dynamic shared memory above 48 KiB has to be asked for, once per kernel.
template <class Kernel>
Status allow_shared(Kernel* kernel, int bytes) {
  if (bytes <= 48 * 1024) return {};
  return check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
               "shared memory of a kernel");
}

template <class T>
constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

}  // namespace dsv4::cuda
