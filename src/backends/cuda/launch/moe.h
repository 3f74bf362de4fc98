// The experts of a layer and the plan of their tasks: what moe.cu gives to experts.cu.
#pragma once

#include "backends/cuda/core.h"
#include "backends/cuda/device/multiply.cuh"
#include "ops/args/linear.h"

namespace dsv4::cuda {

inline constexpr int kMaxTopk = 16;

// A task: tokens lists[first .. first + count) of one expert; expert -1 = the shared one, whose "list"
// is the rows themselves.
struct Task {
  int32_t expert, first, count, unused;  // 16 bytes: one load
};

// The first `many` tasks are of experts with more than 8 tokens, the last ones of the shared expert.
struct TaskCount {
  int32_t tasks, many;
};

struct Plan {
  Task* tasks;
  TaskCount* count;
  int32_t* lists;  // [E, T] pairs t * k + i
};

struct Experts {
  MatrixStack w1, w3, w2;
  Matrix shared_w1, shared_w3, shared_w2;
  Plan plan;
  const bf16* raw;       // [T, D] where plan and act8 of the input are made by the kernels themselves; nullptr:
  const bf16* x;         // [T, D padded to blocks] rounded by act8
  const float* weights;  // [T, k]
  bf16* h;               // [T * k + T, h_stride], with tasks of many tokens rounded by act8
  bf16* out;             // [T * k + T, D]
  const int32_t* ids;    // [T, k]
  int32_t* finished;     // with raw: who is done with some rows of the output
  bf16* y;               // with raw: [T, D]
  float limit;
  int32_t T, D, I, shared_I, k, h_stride;
};

// Place of expert j of a token among its k by ascending id, the first of equal ones first.
__device__ inline int place_by_id(const int32_t* ids, int k, int j) {
  int place = 0;
  for (int o = 0; o < k; ++o) place += ids[o] < ids[j] || (ids[o] == ids[j] && o < j);
  return place;
}

// Which experts a kernel has. Two kernels side by side: that of the shared expert lets the other one come only when
// all before them is done, so the other one may begin without waiting; it ends when both are done.
enum class Part : uint8_t { kAll, kShared, kRouted };

// Both products of the tasks of the plan and, where these are not `shared_planned`, of the shared expert for all rows.
Status experts(OpContext& ctx, const Experts& p, Product product, unsigned tasks, int per_task, bool shared_planned);
// Tokens of a task for `pairs` of tokens and experts.
int task_tokens(const Experts& p, int64_t pairs, int64_t E);
// Blocks of the kernel that has the shared expert for itself.
int shared_kernel_blocks(const Experts& p, bool is_up);

// One of the products for tasks of few tokens (experts_few.cu), per_task of few_task_tokens() at most.
Status experts_few(OpContext& ctx, const Experts& p, Product product, int per_task, bool is_up, Part part);
// Tokens of its tasks at most, 16, 8 or none, where K has up to `blocks` blocks.
int few_task_tokens(int blocks);
// Both products of one row of Experts::raw, where fits_one_row() (experts_one.cu).
Status experts_one(OpContext& ctx, const Experts& p, Product product);
bool fits_one_row(const Experts& p);
// Blocks of the router of few rows, whose processors the next kernel gets late.
inline constexpr int kRouterBlocks = 16;
// Whether so few rows need neither a plan nor act8 of x, and y comes out (Experts::raw).
bool plans_itself(int64_t T, int64_t k, int64_t D);
// Numbers of Experts::finished.
int64_t finished_counts(int64_t D);

}  // namespace dsv4::cuda
