// Barriers in shared memory that threads arrive at without waiting.
#pragma once

#include <cstdint>

#include "backends/cuda/device/mma.cuh"

namespace dsv4::cuda {

// A phase ends with `count` arrivals. By one thread, before __syncthreads().
__device__ inline void barrier_init(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(barrier))), "r"(count) : "memory");
}
__device__ inline void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(barrier))) : "memory");
}
// The phase ends when `bytes` of copies have come, too. Counts as one arrival.
__device__ inline void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(barrier))), "r"(bytes) : "memory");
}
// A multiple of 16 bytes into shared memory, counted at `barrier`. By one thread.
__device__ inline void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(bytes), "r"(static_cast<uint32_t>(__cvta_generic_to_shared(barrier)))
               : "memory");
}
// The same for weights, which are read once.
__device__ inline void copy_bulk_stream(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(bytes), "r"(static_cast<uint32_t>(__cvta_generic_to_shared(barrier))), "l"(read_once())
               : "memory");
}
// After barrier_init(), by the same thread.
__device__ inline void barriers_known_to_copies() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Until phase `phase` (0, 1, ...) has ended; no more than one may have ended since.
__device__ inline void barrier_wait(uint64_t* barrier, uint32_t phase) {
  uint32_t done = 0;
  while (!done) {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(barrier))), "r"(phase & 1u)
                 : "memory");
  }
}

}  // namespace dsv4::cuda
