// rope alone.
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/ops.h"
#include "backends/cuda/core.h"

namespace dsv4::cuda {
namespace {

__global__ void rope_kernel(const RopeArgs a) {
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int half = static_cast<int>(a.rope.r / 2);
  if (i >= a.T * a.H * half) return;
  const int64_t row = i / half;
  const int pair = static_cast<int>(i % half);
  bf16* x = a.x + (row + 1) * a.d - a.rope.r + 2 * pair;
  const float angle = static_cast<float>(a.positions[row / a.H]) * a.rope.freqs[pair];
  float s, c;
  sincosf(angle, &s, &c);
  if (a.inverse) s = -s;
  const float re = to_float(x[0]), im = to_float(x[1]);
  x[0] = to_bf16(re * c - im * s);
  x[1] = to_bf16(re * s + im * c);
}

}  // namespace

Status rope(OpContext& ctx, const RopeArgs& a) {
  const int64_t n = a.T * a.H * (a.rope.r / 2);
  if (n == 0) return {};
  return enqueue(ctx, "rope_kernel", rope_kernel, static_cast<unsigned>(ceil_div<int64_t>(n, 256)), 256, 0, a);
}

}  // namespace dsv4::cuda
