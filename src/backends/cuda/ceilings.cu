// What this GPU can do at most: reading memory, and BF16 matrix products out of registers.
#include <algorithm>

#include "backends/cuda/ceilings.h"
#include "backends/cuda/core.h"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/pack.h"

namespace dsv4::cuda {
namespace {

constexpr int kThreads = 512, kInFlight = 8, kRuns = 5;

__global__ void __launch_bounds__(kThreads) read_kernel(const uint4* data, int64_t n, uint32_t* out) {
  uint32_t sum = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i + (kInFlight - 1) * step < n; i += kInFlight * step) {
    uint4 v[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) v[j] = load_stream(data + i + j * step);
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (sum == 0x12345678u) *out = sum;  // keeps the loads
}

constexpr int kChains = 8, kRounds = 4096;

// Independent chains of the instruction that every product here is made of.
__global__ void __launch_bounds__(256) mma_kernel(float* out) {
  float d[kChains][4] = {};
  const uint32_t a[4] = {threadIdx.x, threadIdx.x * 3u, threadIdx.x * 5u, threadIdx.x * 7u};
  const uint32_t b[2] = {threadIdx.x * 11u, threadIdx.x * 13u};
  for (int i = 0; i < kRounds; ++i) {
#pragma unroll
    for (int c = 0; c < kChains; ++c) mma_bf16(d[c], a, b);
  }
  float sum = 0.0f;
  for (int c = 0; c < kChains; ++c) sum += d[c][0] + d[c][1] + d[c][2] + d[c][3];
  if (sum == 12345.0f) *out = sum;
}

// Best of some runs, in seconds, after one that is not counted.
template <class Launch>
Status best_time(cudaStream_t s, Launch&& launch_kernel, double& seconds) {
  cudaEvent_t begin = nullptr, end = nullptr;
  cudaError_t error = cudaEventCreate(&begin);
  if (error == cudaSuccess) error = cudaEventCreate(&end);
  seconds = 1e9;
  for (int i = 0; error == cudaSuccess && i <= kRuns; ++i) {
    cudaEventRecord(begin, s);
    launch_kernel();
    cudaEventRecord(end, s);
    error = cudaEventSynchronize(end);
    float ms = 0.0f;
    if (error == cudaSuccess) error = cudaEventElapsedTime(&ms, begin, end);
    if (i > 0) seconds = std::min(seconds, static_cast<double>(ms) * 1e-3);
  }
  if (begin) cudaEventDestroy(begin);
  if (end) cudaEventDestroy(end);
  return check(error, "measurement of ceilings");
}

}  // namespace

Result<Ceilings> measure_ceilings(cudaStream_t s, int multiprocessors, int64_t cache_bytes, size_t available) {
  const size_t bytes = std::min<size_t>(size_t{4} << 30, available / 2) / sizeof(uint4) * sizeof(uint4);
  DSV4_ASSIGN(const Buffer data, allocate_device(bytes, true));
  const unsigned blocks = static_cast<unsigned>(multiprocessors) * 4;
  double read = 0.0, product = 0.0;
  DSV4_TRY(best_time(s, [&] {
    read_kernel<<<blocks, kThreads, 0, s>>>(data.as<uint4>(), static_cast<int64_t>(bytes / sizeof(uint4)), data.as<uint32_t>());
  }, read));
  DSV4_TRY(best_time(s, [&] { mma_kernel<<<blocks, 256, 0, s>>>(data.as<float>()); }, product));
  constexpr double kFlopsOfMma = 2.0 * 16 * 8 * 16;
  return Ceilings{.read_bytes_per_s = static_cast<double>(bytes) / read,
                  .flops_per_s = kFlopsOfMma * kChains * kRounds * 8.0 * static_cast<double>(blocks) / product,
                  .flops_of = "BF16 mma.sync from registers",
                  .cache_bytes = cache_bytes};
}

}  // namespace dsv4::cuda
