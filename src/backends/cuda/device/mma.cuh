// Tensor core instructions, and codes to their operands.
#pragma once

#include <cstdint>

namespace dsv4::cuda {

// D[16, 8] += A[16, 16] B[16, 8], FP32 sums. Lane 4 g + t holds A rows g, g + 8 at pairs t and t + 4 of
// K, B column g, and D rows g, g + 8 at columns 2 t, 2 t + 1.
__device__ inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void ldmatrix(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))));
}
__device__ inline void ldmatrix_transposed(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))));
}

__device__ inline void copy_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global));
}
// Without a branch.
__device__ inline void copy_async_16_if(void* shared, const void* global, bool wanted) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %2, 0; @p cp.async.cg.shared.global [%0], [%1], 16; }" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(static_cast<int>(wanted)));
}
// Copies of absent rows leave zeros.
__device__ inline void copy_async_16_or_zero(void* shared, const void* global, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(present ? 16 : 0));
}
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;"); }
template <int N>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N));
}

// Weights are read once a step: they leave no trace in L1 and go first from L2, where the code of the kernels, which
// comes round once a layer, and what they hand each other should stay.
__device__ inline uint64_t read_once() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ inline uint4 load_stream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4], %5;"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p), "l"(read_once()));
  return v;
}

// Brings up to 2^32 - 16 bytes (a multiple of 16) into L2 without waiting for them.
__device__ inline void prefetch_l2(const void* p, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes));
}

// Registers of a thread from here on, where they can be moved from one warpgroup to another. All warps of it, and on the
// way to it no more in use than that.
template <int N>
__device__ inline void more_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <int N>
__device__ inline void fewer_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

// The next kernel's blocks may come, when all of this one have said so.
__device__ inline void let_next_come() { asm volatile("griddepcontrol.launch_dependents;"); }
// All before this kernel is done and visible.
__device__ inline void previous_done() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// First in every kernel: the next kernel's blocks may come, and this one goes on when all before it is
// done and visible. Only what no kernel writes (weights) may be touched before.
__device__ inline void wait_for_previous() {
  let_next_come();
  previous_done();
}

// The same where the next kernel may read, before its own wait, what kernels before this one wrote.
__device__ inline void wait_for_previous_first() {
  previous_done();
  let_next_come();
}

__device__ inline uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

}  // namespace dsv4::cuda
