// Linear maps for the launchers of other ops, and what the two files of linear share.
#pragma once

#include "backends/cuda/device/multiply.cuh"
#include "backends/cuda/pack.h"
#include "ops/args/linear.h"
#include "ops/context.h"

namespace dsv4::cuda {

// Warps of one block that share a tile's K: a function of the weight's shape alone.
int split_k(int64_t tiles, int64_t blocks);

// One matrix of a stack.
struct LinearJob {
  Matrix w;
  void* y;
  int32_t first_block;  // of the grid; of many tokens: cluster
  int32_t split;        // shares of K
  // Few tokens: the tiles of a block, which as many blocks of a cluster as `sharing` have; its shares of K.
  int32_t tiles_here, sharing, own;
  Product product;
  bool act8;  // whether the input is rounded by act8 first
  bool y_f32;
};

struct LinearParams {
  LinearJob jobs[kMaxStackedLinears];
  int32_t n, T, K;
  int32_t few;             // tokens of a block of few
  int32_t cluster;         // blocks of few tokens that exchange sums
  const bf16* x;           // rows x_stride apart; of group g, K * g further
  int64_t x_stride;        // elements
  const bf16* norm;        // [K] of an RMSNorm of x, or nullptr
  float norm_eps;
  int32_t rows_per_group;  // 0: one group
  const bf16* act8;        // act8(x) [T, K padded to blocks] by a kernel of its own, or nullptr: each block makes it
};

// The jobs of `p` where there are many tokens, bit for bit what the kernel of few has, which leaves p.n = 0; nothing for
// groups of rows that are no multiple of 128.
Status linear_many(OpContext& ctx, LinearParams& p);

}  // namespace dsv4::cuda
