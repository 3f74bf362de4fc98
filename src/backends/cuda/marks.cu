#include "backends/cuda/marks.h"

#include <cstdint>
#include <utility>

#include "backends/cuda/core.h"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/pack.h"

namespace dsv4::cuda {
namespace {

// Takes part in the chain of kernels: the next one gets ready while this one waits for the one before.
__global__ void mark_kernel(uint64_t* time) {
  wait_for_previous();
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(*time));
}

class CudaMarks : public Marks {
 public:
  explicit CudaMarks(Buffer times) : times_(std::move(times)) {}

  Status mark(Stream& s, int64_t i) override {
    return enqueue_clusters(static_cast<CudaStream&>(s), "mark_kernel", mark_kernel, dim3(1), 1, 1, 0, times_.as<uint64_t>() + i);
  }

  Result<int64_t> nanoseconds(int64_t from, int64_t to) const override {
    uint64_t begin = 0, end = 0;
    const uint64_t* const times = times_.as<const uint64_t>();
    DSV4_TRY(check(cudaMemcpy(&begin, times + from, sizeof begin, cudaMemcpyDeviceToHost), "time of a mark"));
    DSV4_TRY(check(cudaMemcpy(&end, times + to, sizeof end, cudaMemcpyDeviceToHost), "time of a mark"));
    return static_cast<int64_t>(end - begin);
  }

 private:
  Buffer times_;  // [n] ns
};

}  // namespace

Result<std::unique_ptr<Marks>> make_marks(int64_t n) {
  DSV4_ASSIGN(Buffer times, allocate_device(static_cast<size_t>(n) * sizeof(uint64_t), true));
  return std::unique_ptr<Marks>(std::make_unique<CudaMarks>(std::move(times)));
}

}  // namespace dsv4::cuda
