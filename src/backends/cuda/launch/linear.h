// Linear maps for the launchers of other ops.
#pragma once

#include "backends/cuda/pack.h"
#include "ops/context.h"

namespace dsv4::cuda {

// x [rows, cols] BF16 -> codes as FP16 [rows, padded cols] in operand order, scales [rows, blocks].
struct Quantised {
  uint16_t* codes = nullptr;
  float* scales = nullptr;
};
Result<Quantised> quantise(OpContext& ctx, Workspace::Scope& scratch, const bf16* x, int64_t rows, int64_t cols);

// Warps of one block that share a tile's K: a function of the weight's shape alone.
int split_k(int64_t tiles, int64_t blocks);

}  // namespace dsv4::cuda
