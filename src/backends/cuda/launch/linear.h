// Linear maps for the launchers of other ops, and what the two files of linear share.
#pragma once

#include "backends/cuda/device/multiply.cuh"
#include "backends/cuda/pack.h"
#include "ops/args/linear.h"
#include "ops/context.h"

namespace dsv4::cuda {

// x [rows, cols] BF16 -> codes as E4M3 [rows, padded cols] in operand order, scales [rows, blocks].
struct Quantised {
  uint8_t* codes = nullptr;
  float* scales = nullptr;
};
Result<Quantised> quantise(OpContext& ctx, Workspace::Scope& scratch, const bf16* x, int64_t rows, int64_t cols);

// Warps of one block that share a tile's K: a function of the weight's shape alone.
int split_k(int64_t tiles, int64_t blocks);

// One matrix of a stack.
struct LinearJob {
  Matrix w;
  void* y;
  int32_t first_block;  // of the grid
  int32_t split;
  int32_t side_by_side;  // for many tokens: warps that take shares of one tile's K
  Product product;
  bool y_f32;
};

struct LinearParams {
  LinearJob jobs[kMaxStackedLinears];
  int32_t n, T, K;
  int32_t staged_bytes;    // of shared memory, before the partial sums
  const bf16* x;           // rows x_stride apart; of group g, K * g further
  int64_t x_stride;        // elements
  const bf16* norm;        // [K] of an RMSNorm of x, or nullptr
  float norm_eps;
  int32_t rows_per_group;  // 0: one group
  const uint8_t* codes;    // quantised by a kernel of its own, or nullptr: staged
  const float* scales;
};

// The jobs of one kind of product where there are many tokens, bit for bit what the path of few has. Takes the jobs
// that it does well out of `p`; FP4, which models have in experts only, stays.
Status linear_many(OpContext& ctx, LinearParams& p);

}  // namespace dsv4::cuda
