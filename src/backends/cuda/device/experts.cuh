// What the kernels of few and of many tokens per expert share.
#pragma once

#include "backends/cuda/device/multiply.cuh"
#include "backends/cuda/launch/moe.h"

namespace dsv4::cuda {

// Of K: the order of every sum depends on it.
inline constexpr int kShares = 2;
inline constexpr int kPair = 2;  // tiles of a warp: w1 and w3, or two of w2

__device__ inline Matrix at(const MatrixStack& s, int expert) {
  Matrix m = s.first;
  m.codes += expert * s.code_stride;
  m.scales += expert * s.scale_stride;
  m.global_scale = s.global_scales ? s.global_scales[expert] : 1.0f;
  return m;
}

// silu(a) u, both clamped. Comparisons as the definition has them: a NaN passes.
__device__ inline float swiglu(float a, float u, float limit) {
  a = a > limit ? limit : a;
  u = u > limit ? limit : u < -limit ? -limit : u;
  return a / (1.0f + expf(-a)) * u;
}

// Before what kernels in front wrote is read, and as the last of a block with a task.
__device__ inline void begin(Part part, bool before_next) {
  if (part == Part::kRouted) let_next_come();
  else if (part == Part::kShared || before_next) wait_for_previous_first();
  else wait_for_previous();
}
__device__ inline void end(Part part) {
  if (part == Part::kRouted) previous_done();
}

}  // namespace dsv4::cuda
