// Router and experts. Routing never leaves the device: a plan of tasks (an expert and some of its tokens) is made
// there, and grids are sized for the most tasks that the batch can have.
//   route_kernel    lists of tokens per expert, tasks; act8 of the input
//   up, down        the products and what lies between them (experts.cu, experts_few.cu)
//   combine_kernel  experts in ascending id, then the shared one
// The shared expert is one more expert whose tokens are all rows.
#include <algorithm>

#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/multiply.cuh"
#include "backends/cuda/device/quantise.cuh"
#include "backends/cuda/launch/linear.h"
#include "backends/cuda/launch/moe.h"
#include "backends/cuda/ops.h"
#include "base/str.h"
#include "ops/check.h"

namespace dsv4::cuda {
namespace {

constexpr int kMaxExperts = 1024;
constexpr int kFewRows = 16;  // with which the shared expert is a task among others

// sqrt(softplus) scores, top-k or table, weights.
struct Select {
  const float* logits;  // [T, E]
  const float* bias;
  const int32_t* tid2eid;
  const int32_t* tokens;
  int32_t* ids;
  float* weights;
  float scaling;
  int32_t T, E, k;
};

__device__ float score_of(float logit) { return sqrtf(logit > 20.0f ? logit : log1pf(expf(logit))); }

// The k experts of one token and their weights, by one warp; score [E] in shared memory, rank too, which is for the
// choice without a table and has the bias in it.
__device__ void select_experts(const Select& p, int64_t t, const float* score, float* rank) {
  const int lane = threadIdx.x % 32;
  int32_t* ids = p.ids + t * p.k;
  // The best of a lane's experts that are left, the first of equal ones; a NaN is none.
  float top = -INFINITY;
  int best = p.E;
  const auto look = [&] {
    top = -INFINITY;
    best = p.E;
#pragma unroll 4
    for (int e = lane; e < p.E; e += 32) {
      if (rank[e] > top) {
        top = rank[e];
        best = e;
      }
    }
  };
  if (!p.tid2eid) look();
  float sum = 0.0f, mine = 0.0f;
  for (int i = 0; i < p.k; ++i) {
    int chosen;
    if (p.tid2eid) {
      chosen = p.tid2eid[static_cast<int64_t>(p.tokens[t]) * p.k + i];
    } else {
      const uint32_t bits = float_to_bits(top), key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
      const uint32_t most = __reduce_max_sync(~0u, key);
      chosen = static_cast<int>(__reduce_min_sync(~0u, static_cast<uint32_t>(key == most ? best : p.E)));
      if (chosen == p.E) chosen = i;  // nothing but NaN: any expert, but a valid one
      if (lane == chosen % 32) {
        rank[chosen] = -INFINITY;
        look();
      }
    }
    const float weight = score[chosen];
    if (lane == i) {
      ids[i] = chosen;
      mine = weight;
    }
    sum += weight;
  }
  if (lane < p.k) p.weights[t * p.k + lane] = mine / sum * p.scaling;
}

__global__ void __launch_bounds__(128) select_experts_kernel(const Select p) {
  wait_for_previous();
  extern __shared__ float shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * 4 + warp;
  if (t >= p.T) return;
  float *score = shared + warp * 2 * p.E, *rank = score + p.E;
  for (int e = lane; e < p.E; e += 32) {
    score[e] = score_of(p.logits[t * p.E + e]);
    if (!p.tid2eid) rank[e] = score[e] + p.bias[e];
  }
  __syncwarp();
  select_experts(p, t, score, rank);
}

// Shared memory of the router before the rows of x, which ldmatrix wants aligned.
__host__ __device__ constexpr int router_row_bytes(int T, int columns, int E) { return ((T * columns + E) * 4 + 15) / 16 * 16; }

// The best k of each 32 experts of a token, with what of them is no number in last places: ranks and ids.
__host__ __device__ constexpr int candidate_places(int E, int k) { return ((E + 31) / 32 * k + 3) / 4 * 4; }
struct Candidates {
  float* ranks;  // [T, places]
  int32_t* ids;
  int places;

  __device__ Candidates(char* memory, const Select& p)
      : ranks(reinterpret_cast<float*>(memory)), places(candidate_places(p.E, p.k)) {
    ids = reinterpret_cast<int32_t*>(ranks + p.T * places);
  }
};

// How many of `quads` * 4 ranks come before the one at place `at`, `mine`: the larger ones, and the equal ones before it.
__device__ int place_of(const float* ranks, int quads, float mine, int at) {
  int place = 0;
#pragma unroll 2
  for (int q = 0; q < quads; ++q) {
    const float4 v = reinterpret_cast<const float4*>(ranks)[q];
    place += v.x > mine || (v.x == mine && 4 * q < at);
    place += v.y > mine || (v.y == mine && 4 * q + 1 < at);
    place += v.z > mine || (v.z == mine && 4 * q + 2 < at);
    place += v.w > mine || (v.w == mine && 4 * q + 3 < at);
  }
  return place;
}

// Gate and selection of up to 8 tokens in one launch: a cluster multiplies, with the sums of `linear`, and its first
// block selects, with the choices of select_experts(). What does not depend on the kernels before is read before they are
// done: the gate's weights, as far as registers hold them, the biases, the table's experts. All that follows is run once
// before they are, too, on what happens to be in shared memory, since code that comes from memory takes longer than its work.
constexpr int kPlacedTokens = 2;  // for which all warps of a block choose together; more have a warp each
constexpr int kRouterWarps = 8, kRouterDepth = 4;
__global__ void __launch_bounds__(kRouterWarps * 32)
    few_router_kernel(const Select p, const Matrix gate, const bf16* x, int split) {
  // scores [T, E rounded to tiles], of the first block; biases [E]; the rows of x, then the candidates
  extern __shared__ __align__(1024) float shared[];
  __shared__ float sums[kRouterWarps][8 * kTileRows];
  __shared__ float4 neighbours[kRouterWarps][8];
  __shared__ int32_t chosen[8][kMaxTopk];
  __shared__ Arrivals scores_here;
  // Shares and what is made of them are powers of two.
  const auto log2_of = [](int n) { return 31 - __clz(n); };
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4, part = warp & (split - 1);
  const int local_tile = warp >> log2_of(split), per_block = kRouterWarps >> log2_of(split), tiles = gate.tiles(), columns = tiles * kTileRows;
  const int first = static_cast<int>(blockIdx.x) * per_block;
  float *score = shared, *bias = shared + p.T * columns;
  if (threadIdx.x == 0) expect_arrivals(scores_here, blockIdx.x == 0 ? static_cast<uint32_t>(p.T * columns * 4) : 0);
  block_started();
  if (part == 0 && lane == 0 && first + local_tile < tiles) {
    const int64_t bytes = static_cast<int64_t>(gate.blocks()) * block_code_bytes(WeightFormat::kBf16);
    prefetch_l2(gate.codes + (first + local_tile) * bytes, static_cast<uint32_t>(bytes));
  }
  Ahead<Product::kBf16, 1, kRouterDepth> ahead;
  {
    const Tile mine[1] = {tile_of<Product::kBf16>(gate, min(first + local_tile, tiles - 1))};
    load_ahead<Product::kBf16>(mine, gate.blocks(), part, split, ahead);
  }
  let_next_come();
  if (blockIdx.x == 0 && p.tid2eid) {
    if (warp < p.T && lane < p.k) chosen[warp][lane] = p.tid2eid[static_cast<int64_t>(p.tokens[warp]) * p.k + lane];
  } else if (blockIdx.x == 0) {
#pragma unroll 1
    for (int e = threadIdx.x; e < p.E; e += kRouterWarps * 32) bias[e] = p.bias[e];
  }
  blocks_started();  // their shared memory may be written
  char* rows = reinterpret_cast<char*>(shared) + router_row_bytes(p.T, columns, p.E);
  const int stride = few_stride(gate.blocks()), groups = (p.E + 31) / 32;
  const Candidates candidates(rows, p);
  int sharers = kRouterWarps;  // warps of a token in the last round
  while (sharers * p.T > kRouterWarps) sharers /= 2;
  const int token = warp >> log2_of(sharers);
  const char* tokens[1];
  few_tokens(rows, stride, p.T, tokens);
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    const bool real = pass == 1;
    __syncthreads();
    if (real) previous_done();
#pragma unroll 1
    for (int t = 0; t < (real ? p.T : 1); ++t) {
      const bf16* from = x + static_cast<int64_t>(t) * gate.cols;
#pragma unroll 1
      for (int i = threadIdx.x; i < gate.cols / 8; i += kRouterWarps * 32) copy_async_16_if(rows + t * stride + i * 16, from + i * 8, real);
    }
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    // Of the rehearsal only what is in registers.
    const int blocks = real ? gate.blocks() : min(gate.blocks(), part + kRouterDepth * split);
#pragma unroll 1
    for (int base = first; base < (real ? tiles : min(tiles, first + 1)); base += kRouterBlocks * per_block) {
      const int tile = base + local_tile;
      const Tile mine[1] = {tile_of<Product::kBf16>(gate, min(tile, tiles - 1))};
      float total[1][1][4] = {};
      if (tile < tiles) {
        if (base != first) load_ahead<Product::kBf16>(mine, blocks, part, split, ahead);
        int at = part * (kBlockK * 2);
#pragma unroll 1
        for (int block = part; block < blocks; block += kRouterDepth * split) {
#pragma unroll
          for (int d = 0; d < kRouterDepth; ++d) {
            if (block + d * split >= blocks) break;
            multiply_groups<Product::kBf16, 4>(ahead[d], tokens, at, total);
            if (block + (d + kRouterDepth) * split < blocks) load_block<Product::kBf16>(mine[0], block + (d + kRouterDepth) * split, ahead[d][0]);
            at += split * (kBlockK * 2);
          }
        }
      }
      for (int i = 0; i < 4; ++i) sums[warp][(2 * c + i % 2) * kTileRows + g + i / 2 * 8] = total[0][0][i];
      __syncthreads();
#pragma unroll 1
      for (int i = threadIdx.x; i < per_block * p.T * kTileRows; i += kRouterWarps * 32) {
        const int r = i % kTileRows, local = i / kTileRows & (per_block - 1), t = i / kTileRows >> log2_of(per_block);
        if (base + local >= tiles) continue;
        float sum = 0.0f;
        for (int w = local * split; w < (local + 1) * split; ++w) sum += sums[w][t * kTileRows + r];
        const float s = score_of(sum * gate.global_scale);
        if (real) send(score + t * columns + (base + local) * kTileRows + r, s, scores_here, 0);
      }
      __syncthreads();
    }
    if (blockIdx.x != 0) continue;
    if (real) wait_arrivals(scores_here);
    if (!p.tid2eid && p.T > kPlacedTokens && p.E * 4 <= stride) {
      if (!real || warp >= p.T) continue;
      float* const rank = reinterpret_cast<float*>(rows + warp * stride);  // x is not needed any more
      for (int e = lane; e < p.E; e += 32) rank[e] = score[warp * columns + e] + bias[e];
      __syncwarp();
      select_experts(p, warp, score + warp * columns, rank);
      continue;
    }
    if (!p.tid2eid) {
      // Among 32 neighbours each, then among the best of those; where less than k are numbers, expert i is choice i.
      if (threadIdx.x < 8 * kMaxTopk) chosen[threadIdx.x / kMaxTopk][threadIdx.x % kMaxTopk] = threadIdx.x % kMaxTopk;
#pragma unroll 1
      for (int t = 0; t < p.T; ++t) {
        float* const ranks = candidates.ranks + t * candidates.places;
#pragma unroll 1
        for (int group = warp; group < groups; group += kRouterWarps) {
          const int e = group * 32 + lane;
          float mine = e < p.E ? score[t * columns + e] + bias[e] : -INFINITY;
          const bool number = mine > -INFINITY;
          if (!number) mine = -INFINITY;
          float* const near = reinterpret_cast<float*>(neighbours[warp]);
          near[lane] = mine;
          __syncwarp();
          const int place = place_of(near, 8, mine, lane), numbers = __popc(__ballot_sync(~0u, number));
          if (number && place < p.k) {
            ranks[group * p.k + place] = mine;
            candidates.ids[t * candidates.places + group * p.k + place] = e;
          }
          if (lane >= numbers && lane < p.k) ranks[group * p.k + lane] = -INFINITY;
          __syncwarp();
        }
        if (threadIdx.x < 4 && groups * p.k + static_cast<int>(threadIdx.x) < candidates.places) ranks[groups * p.k + threadIdx.x] = -INFINITY;
      }
      __syncthreads();
      if (token < p.T) {
        const float* const ranks = candidates.ranks + token * candidates.places;
#pragma unroll 1
        for (int i = (warp - token * sharers) * 32 + lane; i < candidates.places; i += sharers * 32) {
          const float mine = ranks[i];
          const int place = place_of(ranks, candidates.places / 4, mine, i);
          if (mine > -INFINITY && place < p.k) chosen[token][place] = candidates.ids[token * candidates.places + i];
        }
      }
    }
    __syncthreads();
    if (warp >= p.T) continue;
    const int id = chosen[warp][min(lane, p.k - 1)];
    const float weight = score[warp * columns + id];
    float sum = 0.0f;
#pragma unroll 1
    for (int i = 0; i < p.k; ++i) sum += __shfl_sync(~0u, weight, i);
    const float share = weight / sum * p.scaling;
    if (real && lane < p.k) {
      p.ids[warp * p.k + lane] = id;
      p.weights[warp * p.k + lane] = share;
    }
  }
}

// Block 0 makes the plan, the others quantise the input: a warp per group of 128.
struct Route {
  const int32_t* ids;
  const bf16* x;
  bf16* act8;
  int32_t T, E, k, D, per_task;
  bool plan_shared;  // tasks of the shared expert too
  Plan plan;
};

__device__ void make_plan(const Route& p) {
  const int32_t* ids = p.ids;
  const int T = p.T, E = p.E, k = p.k, per_task = p.per_task;
  const Plan& plan = p.plan;
  __shared__ int count[kMaxExperts];
  for (int e = threadIdx.x; e < E; e += blockDim.x) count[e] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < T * k; i += blockDim.x) {
    const int e = ids[i];
    // The order within a list depends on the run; results do not: columns of an MMA are independent.
    plan.lists[static_cast<int64_t>(e) * T + atomicAdd(&count[e], 1)] = i;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  // Experts with more than 8 tokens, the others, the shared one: in kernels of few tokens these take different time. A lane
  // has neighbouring experts.
  const int lane = threadIdx.x, each = (E + 31) / 32, first = lane * each, end = min(E, first + each);
  const auto tasks_of = [&](int tokens) { return (tokens + per_task - 1) / per_task; };
  int mine[2] = {}, through[2];  // tasks of experts with up to 8 tokens; with more
  for (int e = first; e < end; ++e) mine[count[e] > 8] += tasks_of(count[e]);
  for (int c = 0; c < 2; ++c) {
    through[c] = mine[c];
    for (int o = 1; o < 32; o *= 2) {
      const int other = __shfl_up_sync(~0u, through[c], o);
      if (lane >= o) through[c] += other;
    }
  }
  const int many = __shfl_sync(~0u, through[1], 31), routed = many + __shfl_sync(~0u, through[0], 31);
  const int shared = p.plan_shared ? tasks_of(T) : 0;
  const auto put = [&](int at, int expert, int tokens) {
    for (int i = 0; i < tasks_of(tokens); ++i) plan.tasks[at + i] = {expert, i * per_task, min(per_task, tokens - i * per_task), 0};
  };
  int next[2] = {many + through[0] - mine[0], through[1] - mine[1]};
  for (int e = first; e < end; ++e) {
    int& at = next[count[e] > 8];
    put(at, e, count[e]);
    at += tasks_of(count[e]);
  }
  if (lane == 0) {
    if (shared > 0) put(routed, -1, T);
    *plan.count = {routed + shared, many};
  }
}

__global__ void __launch_bounds__(1024) route_kernel(const __grid_constant__ Route p) {
  wait_for_previous();
  if (blockIdx.x == 0) return make_plan(p);
  const int blocks = (p.D + kBlockK - 1) / kBlockK;
  const int64_t i = static_cast<int64_t>(blockIdx.x - 1) * 32 + threadIdx.x / 32;
  if (i >= static_cast<int64_t>(p.T) * blocks) return;
  float v[4];
  load_group(p.x + i / blocks * p.D, p.D, static_cast<int>(i % blocks), v);
  store_rounded(p.act8 + i * kBlockK, act8_four(v));
}

// kColumns neighbouring columns per thread.
template <int kColumns>
__global__ void combine_kernel(const bf16* out, const int32_t* ids, int T, int D, int k, bf16* y) {
  wait_for_previous();
  const int64_t t = blockIdx.y;
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * kColumns;
  __shared__ int order[kMaxTopk];
  if (threadIdx.x < static_cast<unsigned>(k)) order[place_by_id(ids + t * k, k, threadIdx.x)] = threadIdx.x;
  __syncthreads();
  if (i >= D) return;
  struct alignas(kColumns * 2) Values {
    bf16 v[kColumns];
  };
  const auto values = [&](int64_t pair) { return *reinterpret_cast<const Values*>(out + pair * D + i); };
  float sum[kColumns] = {};
  for (int j = 0; j < k; ++j) {
    const Values v = values(t * k + order[j]);
    for (int c = 0; c < kColumns; ++c) sum[c] += to_float(v.v[c]);
  }
  const Values shared = values(static_cast<int64_t>(T) * k + t);
  Values result;
  for (int c = 0; c < kColumns; ++c) result.v[c] = to_bf16(sum[c] + to_float(shared.v[c]));
  *reinterpret_cast<Values*>(y + t * D + i) = result;
}

}  // namespace

Status router(OpContext& ctx, const RouterArgs& a) {
  if (a.T == 0) return {};
  if (a.k > kMaxTopk || a.k > a.E) {
    return Status(Code::kUnsupported, cat("cuda: ", a.k, " experts per token: expected at most ", std::min<int64_t>(kMaxTopk, a.E)));
  }
  Select p{.logits = nullptr, .bias = a.bias, .tid2eid = a.tid2eid, .tokens = a.tokens, .ids = a.ids,
                 .weights = a.weights, .scaling = a.scaling, .T = static_cast<int32_t>(a.T),
                 .E = static_cast<int32_t>(a.E), .k = static_cast<int32_t>(a.k)};
  const Matrix& gate = matrix(a.gate);
  if (a.T <= 8 && gate.format == WeightFormat::kBf16 && gate.cols % kBlockK == 0) {
    const int of_row = std::max(few_stride(gate.blocks()), candidate_places(p.E, p.k) * 8);
    const int bytes = router_row_bytes(p.T, gate.tiles() * kTileRows, p.E) + p.T * of_row;
    if (bytes <= kMaxSharedBytes / 2) {
      DSV4_TRY(allow_shared(few_router_kernel, bytes));
      DSV4_TRY(allow_clusters(few_router_kernel));
      return enqueue_clusters(ctx, "few_router_kernel", few_router_kernel, kRouterBlocks, kRouterBlocks, kRouterWarps * 32,
                              static_cast<size_t>(bytes), p, gate, a.x, split_k(gate.tiles(), gate.blocks()));
    }
  }
  Workspace::Scope scratch(ctx.workspace);
  DSV4_ASSIGN(float* logits, scratch.take<float>(a.T * a.E));
  DSV4_TRY(linear(ctx, {.x = a.x, .w = a.gate, .y = logits, .y_dtype = DType::kF32, .T = a.T}));
  p.logits = logits;
  const int bytes = 4 * 2 * static_cast<int>(a.E) * 4;
  DSV4_TRY(allow_shared(select_experts_kernel, bytes));
  return enqueue(ctx, "select_experts_kernel", select_experts_kernel, static_cast<unsigned>(ceil_div<int64_t>(a.T, 4)), 128, static_cast<size_t>(bytes), p);
}

Status moe(OpContext& ctx, const MoeArgs& a) {
  if (a.T == 0) return {};
  if (a.E > kMaxExperts || a.k > kMaxTopk) {
    return Status(Code::kUnsupported, cat("cuda: ", a.E, " experts, ", a.k, " per token: expected at most ", kMaxExperts,
                                          " and ", kMaxTopk));
  }
  if (a.shared_w1.format != WeightFormat::kFp8Tile128) {
    return Status(Code::kUnsupported, "cuda: the shared expert is expected in FP8");
  }
  if (a.w1.format != a.w2.format || a.w1.format != a.w3.format) {
    return Status(Code::kUnsupported, "cuda: w1, w2 and w3 of the experts are expected in one format");
  }
  switch (a.w1.format) {
    case WeightFormat::kMxfp4: case WeightFormat::kNvfp4: case WeightFormat::kFp8Tile128: break;
    default: return Status(Code::kUnsupported, cat("cuda: experts of ", format_info(a.w1.format).name));
  }
  const int64_t pairs = a.T * a.k, blocks = ceil_div<int64_t>(a.D, kBlockK);
  const int64_t I = ceil_div<int64_t>(std::max(a.I, a.shared_I), kBlockK) * kBlockK;

  Workspace::Scope scratch(ctx.workspace);
  Experts p{.w1 = weight(a.w1).stack, .w3 = weight(a.w3).stack, .w2 = weight(a.w2).stack,
            .shared_w1 = matrix(a.shared_w1), .shared_w3 = matrix(a.shared_w3), .shared_w2 = matrix(a.shared_w2),
            .weights = a.weights, .limit = a.limit, .T = static_cast<int32_t>(a.T), .D = static_cast<int32_t>(a.D),
            .I = static_cast<int32_t>(a.I), .shared_I = static_cast<int32_t>(a.shared_I),
            .k = static_cast<int32_t>(a.k), .h_stride = static_cast<int32_t>(I)};
  DSV4_ASSIGN(p.h, scratch.take<bf16>((pairs + a.T) * I));
  DSV4_ASSIGN(p.out, scratch.take<bf16>((pairs + a.T) * a.D));
  const Product product = product_of(a.w1.format);
  if (plans_itself(a.T, a.k, std::max(a.D, I))) {
    p.raw = a.x;
    p.ids = a.ids;
    p.y = a.y;
    DSV4_ASSIGN(p.finished, scratch.take<int32_t>(finished_counts(a.D)));
    return experts(ctx, p, product, static_cast<unsigned>(std::min(pairs, a.E + pairs / 8) + 1), 8, true);
  }
  const int per_task = task_tokens(p, pairs, a.E);
  const bool plan_shared = a.T <= kFewRows;
  const int64_t tasks = std::min(pairs, a.E + pairs / per_task) + (plan_shared ? ceil_div<int64_t>(a.T, per_task) : 0);
  DSV4_ASSIGN(p.plan.tasks, scratch.take<Task>(tasks));
  DSV4_ASSIGN(p.plan.count, scratch.take<TaskCount>(1));
  DSV4_ASSIGN(p.plan.lists, scratch.take<int32_t>(a.E * a.T));
  DSV4_ASSIGN(bf16* act8, scratch.take<bf16>(a.T * blocks * kBlockK));
  p.x = act8;
  const Route route{.ids = a.ids, .x = a.x, .act8 = act8, .T = p.T, .E = static_cast<int32_t>(a.E), .k = p.k, .D = p.D,
                    .per_task = per_task, .plan_shared = plan_shared, .plan = p.plan};
  DSV4_TRY(enqueue(ctx, "route_kernel", route_kernel, static_cast<unsigned>(1 + ceil_div<int64_t>(a.T * blocks, 32)), 1024, 0,
                   route));
  DSV4_TRY(experts(ctx, p, product, static_cast<unsigned>(tasks), per_task, plan_shared));
  const auto combine = [&](auto* kernel, int64_t columns) {
    const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(a.D, 256 * columns)), static_cast<unsigned>(a.T));
    return enqueue(ctx, "combine_kernel", kernel, grid, 256, 0, p.out, a.ids, static_cast<int>(a.T), static_cast<int>(a.D), static_cast<int>(a.k), a.y);
  };
  return a.D % 4 == 0 ? combine(combine_kernel<4>, 4) : combine(combine_kernel<1>, 1);
}

}  // namespace dsv4::cuda
