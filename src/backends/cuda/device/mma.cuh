// Tensor core instructions, and codes to their operands.
#pragma once

#include <cstdint>

namespace dsv4::cuda {

// D[16, 8] += A[16, 16] B[16, 8], FP32 sums. Lane 4 g + t holds A rows g, g + 8 at pairs t and t + 4 of
// K, B column g, and D rows g, g + 8 at columns 2 t, 2 t + 1.
__device__ inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with nothing added: D = A B.
__device__ inline void mma_f16_first(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0f));
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
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;"); }
template <int N>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N));
}

// Weights are read once: they leave no trace in L1 and go first in L2.
__device__ inline uint4 load_stream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// Brings up to 2^32 - 16 bytes (a multiple of 16) into L2 without waiting for them.
__device__ inline void prefetch_l2(const void* p, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes));
}

// First in every kernel: the next kernel's blocks may come, and this one goes on when all before it is
// done and visible. Only what no kernel writes (weights) may be touched before.
__device__ inline void wait_for_previous() {
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// The same where the next kernel may read, before its own wait, what kernels before this one wrote.
__device__ inline void wait_for_previous_first() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
}

// Four E4M3 codes (k0, k2, k1, k3) as two pairs of FP16: value * 2^-8, subnormals included.
__device__ inline void e4m3_to_f16(uint32_t w, uint32_t& k01, uint32_t& k23) {
  k01 = ((w << 8) & 0x80008000u) | ((w << 7) & 0x3f803f80u);
  k23 = (w & 0x80008000u) | ((w >> 1) & 0x3f803f80u);
}

// The same as BF16, exact: exponent and mantissa in place are value * 2^-120, then one product.
__device__ inline uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
__device__ inline void e4m3_to_bf16(uint32_t w, uint32_t& k01, uint32_t& k23) {
  constexpr uint32_t kTwoTo120 = 0x7b807b80u;
  k01 = mul_bf16x2(((w << 8) & 0x80008000u) | ((w << 4) & 0x07f007f0u), kTwoTo120);
  k23 = mul_bf16x2((w & 0x80008000u) | ((w >> 4) & 0x07f007f0u), kTwoTo120);
}

// Eight E2M1 codes of one row and both steps as FP16 pairs: value * 2^-14. Nibble i of `w` holds the three
// bits of element i without its sign; the signs of elements 0..3 are bits 7, 15, 23, 31, those of 4..7
// bits 3, 11, 19, 27. A byte permutation looks up the upper byte of each FP16, the lower one is 0.
__device__ inline void e2m1_to_f16(uint32_t w, uint32_t (&pairs)[4]) {
  // Upper bytes of 0, 2^-15, 2^-14, 1.5 * 2^-14, 2^-13, 1.5 * 2^-13, 2^-12, 1.5 * 2^-12.
  constexpr uint32_t kLow = 0x06040200u, kHigh = 0x0e0c0a08u;
  const uint32_t magnitudes = w & 0x77777777u;
  const uint32_t first = __byte_perm(kLow, kHigh, magnitudes) | (w & 0x80808080u);
  const uint32_t second = __byte_perm(kLow, kHigh, magnitudes >> 16) | ((w << 4) & 0x80808080u);
  pairs[0] = __byte_perm(first, 0, 0x1404);
  pairs[1] = __byte_perm(first, 0, 0x3424);
  pairs[2] = __byte_perm(second, 0, 0x1404);
  pairs[3] = __byte_perm(second, 0, 0x3424);
}

}  // namespace dsv4::cuda
