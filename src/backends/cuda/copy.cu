#include "backends/cuda/copy.h"

#include <cstdint>

#include "backends/cuda/core.h"
#include "base/str.h"

namespace dsv4::cuda {
namespace {

constexpr size_t kWord = sizeof(uint4);
constexpr unsigned kThreads = 256;

// `words` words, then single bytes. What the host has written since the last launch is not taken from a
// cache.
__global__ void copy_kernel(char* to, const char* from, size_t words, size_t bytes) {
  const size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < words) {
    reinterpret_cast<uint4*>(to)[i] = __ldcv(reinterpret_cast<const uint4*>(from) + i);
    return;
  }
  const size_t at = words * kWord + (i - words);
  if (at < bytes) to[at] = __ldcv(from + at);
}

Status check_reach(const void* p) {
  cudaPointerAttributes attributes{};
  DSV4_TRY(check(cudaPointerGetAttributes(&attributes, p), "recording a copy"));
  if (attributes.type == cudaMemoryTypeHost || attributes.type == cudaMemoryTypeDevice) return {};
  return Status(Code::kInternal, "cuda: a recorded copy takes memory of allocate() and allocate_staging() only");
}

}  // namespace

Status copy_by_kernel(cudaStream_t stream, void* to, const void* from, size_t bytes) {
  DSV4_TRY(check_reach(to));
  DSV4_TRY(check_reach(from));
  const bool aligned = (reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % kWord == 0;
  const size_t words = aligned ? bytes / kWord : 0;
  const size_t threads = words + (bytes - words * kWord);
  copy_kernel<<<static_cast<unsigned>(ceil_div<size_t>(threads, kThreads)), kThreads, 0, stream>>>(
      static_cast<char*>(to), static_cast<const char*>(from), words, bytes);
  return check(cudaGetLastError(), "copy_kernel");
}

}  // namespace dsv4::cuda
