// Exchange between the blocks of a cluster without its barrier. A barrier's release makes every thread wait until all
// that it stored anywhere has arrived, and its acquire empties L1; here values go straight into the others' shared
// memory and are counted there.
#pragma once

#include <cstdint>

namespace dsv4::cuda {

// Counts the bytes that come into a block's shared memory, once. A block that waits for all that is sent to it may
// end when it likes.
struct Arrivals {
  uint64_t barrier;
};

__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// By one thread of every block, before blocks_started().
__device__ inline void prepare_arrivals(Arrivals& a) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&a)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// How many bytes, by one thread of the block, once; some may have come.
__device__ inline void expect_bytes(Arrivals& a, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&a)), "r"(bytes) : "memory");
}
__device__ inline void expect_arrivals(Arrivals& a, uint32_t bytes) {
  prepare_arrivals(a);
  expect_bytes(a, bytes);
}

// All threads: first the one, then before anything is sent the other.
__device__ inline void block_started() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ inline void blocks_started() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

__device__ inline uint32_t address_in(const void* shared, int rank) {
  uint32_t at;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(shared)), "r"(rank));
  return at;
}

// To block `rank`: into what is `to` and `a` there.
__device__ inline void send(float* to, float v, Arrivals& a, int rank) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(address_in(to, rank)),
               "f"(v), "r"(address_in(&a, rank))
               : "memory");
}
__device__ inline void send(float4* to, float4 v, Arrivals& a, int rank) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   address_in(to, rank)),
               "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(address_in(&a, rank))
               : "memory");
}
__device__ inline void send(uint2* to, uint2 v, Arrivals& a, int rank) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(address_in(to, rank)),
               "r"(v.x), "r"(v.y), "r"(address_in(&a, rank))
               : "memory");
}
__device__ inline void send(uint4* to, uint4 v, Arrivals& a, int rank) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   address_in(to, rank)),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(address_in(&a, rank))
               : "memory");
}

__device__ inline void wait_arrivals(Arrivals& a) {
  uint32_t done = 0;
  while (!done) {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared_address(&a))
        : "memory");
  }
}

}  // namespace dsv4::cuda
