// What launchers need besides their arguments: the stream, device limits, errors as values.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string_view>
#include <tuple>
#include <utility>

#include "dsv4/status.h"
#include "ops/context.h"

namespace dsv4::cuda {

// "cuda: <what>: <the runtime's own message>", with a hint where memory ran out.
Status check(cudaError_t error, std::string_view what);

struct CudaStream : Stream {
  cudaStream_t handle = nullptr;
  bool recording = false;
  // Kernels read the batch's arrays before wait_for_previous(), so the first one behind a copy by a kernel
  // does not start before that has ended; nor do those behind it, since each starts after the one before.
  bool behind_copy = false;
  ~CudaStream() override;
};

inline cudaStream_t stream(OpContext& ctx) { return static_cast<CudaStream&>(ctx.stream).handle; }

// Of a Hopper GPU: what grids are shaped for. The order of sums depends on it, so it is not asked for.
inline constexpr int kProcessors = 132;
inline constexpr int kMaxSharedBytes = 227 * 1024;  // of one block, sm_90

// Shared memory above 48 KiB, a kernel's own arrays included (which are 32 KiB at most), has to be asked for, once per kernel.
template <class Kernel>
Status allow_shared(Kernel* kernel, int bytes) {
  if (bytes <= 16 * 1024) return {};
  return check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
               "shared memory of a kernel");
}

inline constexpr unsigned kMaxCluster = 16;  // blocks, sm_90; 8 without asking

template <class Kernel>
Status allow_clusters(Kernel* kernel) {
  return check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
               "a cluster of 16 blocks");
}

// Puts a kernel behind what the stream holds. Its blocks may start while the kernel before it still runs
// (programmatic dependent launch), so every kernel of an op begins with wait_for_previous(). `cluster`
// neighbouring blocks along x run together; above 8 the kernel needs allow_clusters().
template <class... Params, class... Args>
Status enqueue_clusters(CudaStream& stream, std::string_view name, void (*kernel)(Params...), dim3 grid, unsigned cluster,
                        unsigned threads, size_t shared_bytes, Args&&... args) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed =
      !std::exchange(stream.behind_copy, false);
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.handle;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  // Exactly the parameter types of the kernel.
  std::tuple<Params...> values(std::forward<Args>(args)...);
  return std::apply(
      [&](Params&... p) {
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&p))...};
        return check(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers), name);
      },
      values);
}

template <class... Params, class... Args>
Status enqueue_clusters(OpContext& ctx, std::string_view name, void (*kernel)(Params...), dim3 grid, unsigned cluster,
                        unsigned threads, size_t shared_bytes, Args&&... args) {
  return enqueue_clusters(static_cast<CudaStream&>(ctx.stream), name, kernel, grid, cluster, threads, shared_bytes, std::forward<Args>(args)...);
}

template <class... Params, class... Args>
Status enqueue(OpContext& ctx, std::string_view name, void (*kernel)(Params...), dim3 grid, unsigned threads,
               size_t shared_bytes, Args&&... args) {
  return enqueue_clusters(ctx, name, kernel, grid, 1, threads, shared_bytes, std::forward<Args>(args)...);
}

template <class T>
constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

}  // namespace dsv4::cuda
