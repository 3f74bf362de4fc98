// The experts of a layer:
//   up    w1 and w3 of 128 rows per block, clamp, SwiGLU, routing weight, act8 of h
//   down  w2, 256 rows per block, BF16 per expert
// With very few rows `up` makes the plan and rounds its input itself, and the last block of `down` to finish a
// slice of the output adds the experts up: no other kernel is needed.
// With many rows the shared expert has kernels of its own beside those of the others (Part).
// Tasks of 8 or 16 tokens: their whole input lies in shared memory, and warps run free. Of more: blocks of K come through a
// ring, products are those of warpgroups (device/many.cuh).
#include <algorithm>

#include "backends/cuda/device/many.cuh"
#include "backends/cuda/device/quantise.cuh"
#include "backends/cuda/launch/moe.h"

namespace dsv4::cuda {
namespace {

constexpr int kTiles = 8;  // of 16 rows per matrix and block
constexpr int kPair = 2;   // tiles of a warp: w1 and w3, or two of w2
constexpr int kShares = 2;  // of K
constexpr int kUpRows = kTiles * kTileRows, kDownRows = kPair * kUpRows;
static_assert(kUpRows == kBlockK);
constexpr int kFew = 16;             // tokens of a task whose warps run free, at most
constexpr int kManyTaskTokens = 64;  // where experts have many tokens
template <int N>
constexpr int kShareSums = N * kTileRows;  // floats of one tile and share: [token][16 rows]
template <int N>
constexpr int kSumBytes = kTiles * kPair * kShares * kShareSums<N> * 4;

__device__ Matrix at(const MatrixStack& s, int expert) {
  Matrix m = s.first;
  m.codes += expert * s.code_stride;
  m.scales += expert * s.scale_stride;
  m.global_scale = s.global_scales ? s.global_scales[expert] : 1.0f;
  return m;
}

// silu(a) u, both clamped. Comparisons as the definition has them: a NaN passes.
__device__ float swiglu(float a, float u, float limit) {
  a = a > limit ? limit : a;
  u = u > limit ? limit : u < -limit ? -limit : u;
  return a / (1.0f + expf(-a)) * u;
}

// The beginning of a warp's tile into L2, before what it is multiplied with is there; all blocks of a grid together
// stay within L2.
__device__ void prefetch_tile(const Matrix& m, int tile) {
  constexpr int64_t kBytes = 8 * 1024;
  const int64_t bytes = static_cast<int64_t>(m.blocks()) * block_code_bytes(m.format);
  if (threadIdx.x % 32 == 0 && tile < m.tiles()) {
    prefetch_l2(m.codes + tile * bytes, static_cast<uint32_t>(min(bytes, kBytes)));
  }
}

// The task of a block: tokens of one expert, or of the shared one (-1).
struct BlockTask {
  int32_t expert, count, first;
  const int32_t* pairs;  // [count], or nullptr: first + n

  __device__ int pair(int n) const { return pairs ? pairs[n] : first + n; }
};

// What a block multiplies its tiles with: its tokens.
template <class RowOf>
struct Work {
  const bf16* raw;  // to be rounded by act8, [row][columns], or nullptr:
  const bf16* x;    // rounded, [row][stride]
  int32_t columns, stride;
  int32_t blocks;  // of the product
  int32_t count;   // tokens
  RowOf row_of;    // of token n
};

// Up to N = 8 or 16 tokens, input whole in shared memory: sums of both shares at `sums` [tile of block][of pair][share].
template <Product P, int N, int WPT, class RowOf>
__device__ void multiply_few(const Tile (&tiles)[kPair], const Work<RowOf>& w, char* shared, float*& sums) {
  constexpr int kWarps = kTiles * WPT;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int stride = few_stride(w.blocks);
  sums = reinterpret_cast<float*>(shared + N * stride);
  const int first = WPT == 2 ? warp / kTiles : 0;
  Ahead<P, kPair> ahead;
  load_ahead<P>(tiles, w.blocks, first, kShares, ahead);
  if (w.raw) {
    for (int i = warp; i < w.count * w.blocks; i += kWarps) {
      const int n = i / w.blocks, block = i % w.blocks;
      float v[4];
      load_group(w.raw + w.row_of(n) * w.columns, w.columns, block, v);
      *reinterpret_cast<uint2*>(shared + n * stride + block * (kBlockK * 2) + lane * 8) = act8_four(v);
    }
  } else {
    for (int n = 0; n < w.count; ++n) {
      const bf16* from = w.x + w.row_of(n) * w.stride;
      for (int i = threadIdx.x; i < w.blocks * 16; i += kWarps * 32) copy_async_16(shared + n * stride + i * 16, from + i * 8);
    }
    copy_async_commit();
    copy_async_wait<0>();
  }
  __syncthreads();
  const char* x[N / 8];
  few_tokens(shared, stride, w.count, x);
  for (int share = first; share < kShares; share += WPT) {
    if (share != first) load_ahead<P>(tiles, w.blocks, share, kShares, ahead);
    float total[kPair][N / 8][4] = {};
    multiply<P>(tiles, w.blocks, share, kShares, ahead, x, total);
    for (int m = 0; m < kPair; ++m) {
      float* mine = sums + ((warp % kTiles * kPair + m) * kShares + share) * kShareSums<N>;
      for (int i = 0; i < N / 2; ++i) {
        mine[(i / 4 * 8 + 2 * c + i % 2) * kTileRows + g + i % 4 / 2 * 8] = total[m][i / 4][i % 4];
      }
    }
  }
  __syncthreads();
}

// N tokens at most: total, shares added in order. `shared`: the ring, then room for one share.
template <Product P, int N, class RowOf>
__device__ void multiply_shares(const Tile (&tiles)[kPair], const Work<RowOf>& w, char* shared, float (&total)[kPair][N / 2]) {
  static_assert(kShares == 2, "the first share is kept, the second added to it");
  const auto next = [&](int block) { return block + kShares < w.blocks ? block + kShares : block % kShares + 1; };
  Held<P, kPair> weights = {};
  load_blocks<P>(tiles, 0, weights[0]);
  float* spare = reinterpret_cast<float*>(shared + kRingBytes<N>) + threadIdx.x;
  const InputPieces<N> input(w.x, w.stride * int64_t{2}, w.count, w.row_of);
  const auto ends = [](int block, int following) { return following % kShares != block % kShares; };
  multiply_many<P, kPair, N>(tiles, 0, w.blocks, next, weights, input, shared, total, ends, [&](float (&sums)[kPair][N / 2]) {
#pragma unroll
    for (int e = 0; e < kPair * N / 2; ++e) {
      float& v = sums[e / (N / 2)][e % (N / 2)];
      spare[e * kManyThreads] = v;
      v = 0.0f;
    }
  });
#pragma unroll
  for (int e = 0; e < kPair * N / 2; ++e) {
    float& v = total[e / (N / 2)][e % (N / 2)];
    if (w.blocks >= kShares) v = spare[e * kManyThreads] + v;
  }
  __syncthreads();
}

// act8 of one group of h of pair `pair` by one warp; lane l gives elements 4 l .. 4 l + 3.
__device__ void store_h(const Experts& p, int pair, const float (&h)[4]) {
  bf16* to = p.h + static_cast<int64_t>(pair) * p.h_stride + blockIdx.x * kUpRows;
  reinterpret_cast<uint2*>(to)[threadIdx.x % 32] = act8_four(h);
}

template <Product P, int N, int WPT>
__device__ void up(const Experts& p, const BlockTask& task, const Matrix& w1, const Matrix& w3, int I, char* shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, local = warp % kTiles, tile = blockIdx.x * kTiles + local;
  const bool present = tile < w1.tiles();
  const Tile tiles[kPair] = {tile_of<P>(w1, present ? tile : 0), tile_of<P>(w3, present ? tile : 0)};
  const auto row_of = [&](int n) {
    const int pair = task.pair(n);
    return static_cast<int64_t>(task.expert < 0 ? pair - p.T * p.k : pair / p.k);
  };
  const Work<decltype(row_of)> w{p.raw, p.x, p.D, w1.blocks() * kBlockK, w1.blocks(), task.count, row_of};
  const int rows = I - static_cast<int>(blockIdx.x) * kUpRows;  // of this block
  const auto h_of = [&](float a, float u) {
    return swiglu(round_bf16(a * w1.global_scale), round_bf16(u * w3.global_scale), p.limit);
  };
  if constexpr (N > kFew) {
    float total[kPair][N / 2] = {};
    multiply_shares<P, N>(tiles, w, shared, total);
    constexpr int kRow = kUpRows + 1;
    float* h = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int e = 0; e < N / 2; ++e) {
      const int r = local * kTileRows + lane / 4 + e % 4 / 2 * 8, n = e / 4 * 8 + lane % 4 * 2 + e % 2;
      h[n * kRow + r] = r < rows ? h_of(total[0][e], total[1][e]) : 0.0f;
    }
    __syncthreads();
    for (int n = warp; n < task.count; n += kManyWarps) {
      const int pair = task.pair(n);
      const float weight = task.expert < 0 ? 1.0f : p.weights[pair];
      float v[4];
      for (int i = 0; i < 4; ++i) v[i] = round_bf16(h[n * kRow + lane * 4 + i] * weight);
      store_h(p, pair, v);
    }
  } else {
    float* sums;
    multiply_few<P, N, WPT>(tiles, w, shared, sums);
    for (int n = warp; n < task.count; n += kTiles * WPT) {
      const int pair = task.pair(n);
      const float weight = task.expert < 0 ? 1.0f : p.weights[pair];
      float v[4];
      for (int i = 0; i < 4; ++i) {
        const int r = lane * 4 + i;
        const auto sum = [&](int m) {
          const float* s = sums + (r / kTileRows * kPair + m) * kShares * kShareSums<N> + n * kTileRows + r % kTileRows;
          return s[0] + s[kShareSums<N>];
        };
        v[i] = r < rows ? round_bf16(h_of(sum(0), sum(1)) * weight) : 0.0f;
      }
      store_h(p, pair, v);
    }
  }
}

template <Product P, int N, int WPT>
__device__ void down(const Experts& p, const BlockTask& task, const Matrix& w2, char* shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, local = warp % kTiles;
  Tile tiles[kPair];
#pragma unroll
  for (int m = 0; m < kPair; ++m) {
    const int tile = (blockIdx.x * kTiles + local) * kPair + m;
    tiles[m] = tile_of<P>(w2, tile < w2.tiles() ? tile : 0);
  }
  const auto row_of = [&](int n) { return static_cast<int64_t>(task.pair(n)); };
  const Work<decltype(row_of)> w{nullptr, p.h, 0, p.h_stride, w2.blocks(), task.count, row_of};
  const auto store = [&](int n, int r, float low, float high) {
    const int row = blockIdx.x * kDownRows + r;
    if (row >= p.D) return;
    bf16* to = p.out + static_cast<int64_t>(task.pair(n)) * p.D + row;
    const bf16 a = to_bf16(low * w2.global_scale), b = to_bf16(high * w2.global_scale);
    if (p.D % 2 == 0) {
      *reinterpret_cast<uint32_t*>(to) = static_cast<uint32_t>(a.bits) | static_cast<uint32_t>(b.bits) << 16;
    } else {
      to[0] = a;
      if (row + 1 < p.D) to[1] = b;
    }
  };
  if constexpr (N > kFew) {
    float total[kPair][N / 2] = {};
    multiply_shares<P, N>(tiles, w, shared, total);
    // Through shared memory, so that neighbouring threads write neighbouring rows.
    constexpr int kRow = kDownRows + 2;
    float* out = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int m = 0; m < kPair; ++m) {
#pragma unroll
      for (int e = 0; e < N / 2; ++e) {
        const int n = e / 4 * 8 + lane % 4 * 2 + e % 2;
        out[n * kRow + (local * kPair + m) * kTileRows + lane / 4 + e % 4 / 2 * 8] = total[m][e];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < task.count * (kDownRows / 2); i += kManyThreads) {
      const int n = i / (kDownRows / 2), r = i % (kDownRows / 2) * 2;
      store(n, r, out[n * kRow + r], out[n * kRow + r + 1]);
    }
  } else {
    float* sums;
    multiply_few<P, N, WPT>(tiles, w, shared, sums);
    for (int i = threadIdx.x; i < task.count * (kDownRows / 2); i += kTiles * WPT * 32) {
      const int n = i / (kDownRows / 2), r = i % (kDownRows / 2) * 2;
      const float* s = sums + r / kTileRows * kShares * kShareSums<N> + n * kTileRows + r % kTileRows;
      store(n, r, s[0] + s[kShareSums<N>], s[1] + s[kShareSums<N> + 1]);
    }
  }
}

constexpr int kMostPairs = 64;  // of a plan that blocks make for themselves
struct OwnPlan {
  int32_t ids[kMostPairs], pairs[8];
};

// The number of tasks of up to 8 tokens that `ids` [n] makes; and task y of these, its pairs in plan.pairs. By one
// warp, the same in each lane.
__device__ int own_task(const int32_t* ids, int n, int y, OwnPlan& plan, BlockTask& task) {
  const int lane = threadIdx.x % 32;
  int id[2], place[2];  // of pair lane + 32 h: its expert, how many pairs before it name the same
  for (int h = 0; h < 2; ++h) {
    const int i = lane + 32 * h;
    id[h] = i < n ? __ldcg(ids + i) : -1;
    plan.ids[i] = id[h];
  }
  __syncwarp();
  uint32_t leaders[2];
  for (int h = 0; h < 2; ++h) {
    place[h] = 0;
    for (int j = 0; j < min(n, 32 * (h + 1)); ++j) place[h] += j < lane + 32 * h && plan.ids[j] == id[h];
    leaders[h] = __ballot_sync(~0u, lane + 32 * h < n && place[h] % 8 == 0);
  }
  const int in_first = __popc(leaders[0]), tasks = in_first + __popc(leaders[1]);
  if (y < tasks) {
    const bool second = y >= in_first;
    const int leader = static_cast<int>(__fns(leaders[second], 0, y - (second ? in_first : 0) + 1)), source = leader + 32 * second;
    const int eight = __shfl_sync(~0u, place[second], leader) / 8;
    task = {plan.ids[source], 0, 0, plan.pairs};
    for (int h = 0; h < 2; ++h) {
      const bool member = lane + 32 * h < n && id[h] == task.expert && place[h] / 8 == eight;
      if (member) plan.pairs[place[h] % 8] = lane + 32 * h;
      task.count += __popc(__ballot_sync(~0u, member));
    }
  }
  __syncwarp();
  return tasks;
}

// Which experts a kernel has. Two kernels side by side: that of the shared expert lets the other one come only when
// all before them is done, so the other one may begin without waiting; it ends when both are done.
enum class Part : uint8_t { kAll, kShared, kRouted };

// Before what kernels in front wrote is read, and as the last of a block with a task.
__device__ void begin(Part part, bool before_next) {
  if (part == Part::kRouted) let_next_come();
  else if (part == Part::kShared || before_next) wait_for_previous_first();
  else wait_for_previous();
}
__device__ void end(Part part) {
  if (part == Part::kRouted) previous_done();
}

// The task of this block, and how many there are: of the plan, of a plan made here (`own` is for one warp of the
// block, to be shared by all), or a piece of the rows for the shared expert alone.
__device__ bool find_task(const Experts& p, Part part, OwnPlan& own, BlockTask& task, int& tasks) {
  const int y = static_cast<int>(blockIdx.y), pairs = p.T * p.k;
  if (part == Part::kShared) {
    task = {-1, min(kManyTaskTokens, p.T - y * kManyTaskTokens), pairs + y * kManyTaskTokens, nullptr};
    return true;
  }
  if (p.raw) {
    __shared__ BlockTask found;
    __shared__ int experts;
    if (threadIdx.x < 32) {
      BlockTask mine{-1, p.T, pairs, nullptr};
      const int n = own_task(p.ids, pairs, y, own, mine);
      if (threadIdx.x == 0) {
        found = mine;
        experts = n;
      }
    }
    __syncthreads();
    task = found;
    tasks = experts + 1;
    return y < tasks;
  }
  tasks = __ldcg(p.plan.task_count);
  if (y >= tasks) return false;
  const int4 raw = __ldcg(reinterpret_cast<const int4*>(p.plan.tasks + y));
  task = {raw.x, raw.z, pairs + raw.y, nullptr};
  if (raw.x >= 0) task.pairs = p.plan.lists + static_cast<int64_t>(raw.x) * p.T + raw.y;
  return true;
}

template <int N, int WPT>
constexpr int kThreads = N <= kFew ? kTiles * WPT * 32 : kManyThreads;
template <int N, int WPT>
constexpr int kBlocksPerProcessor = N <= kFew && WPT == 1 ? 2 : 1;

// The experts of one slice of the output, all tokens, by the block that is the last to finish it.
__device__ void combine(const Experts& p, int tasks) {
  __shared__ bool last;
  __shared__ int32_t order[kMostPairs];  // pairs of each token by ascending expert
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(p.finished + blockIdx.x, 1) == tasks - 1;
  for (int i = threadIdx.x; i < p.T * p.k; i += blockDim.x) {
    const int j = i % p.k;
    order[i - j + place_by_id(p.ids + i - j, p.k, j)] = i;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int i = threadIdx.x; i < p.T * kDownRows; i += blockDim.x) {
    const int t = i / kDownRows, row = blockIdx.x * kDownRows + i % kDownRows;
    if (row >= p.D) continue;
    const auto value = [&](int pair) {
      const unsigned short bits = __ldcg(reinterpret_cast<const unsigned short*>(p.out) + static_cast<int64_t>(pair) * p.D + row);
      return bits_to_float(static_cast<uint32_t>(bits) << 16);
    };
    float sum = 0.0f;
    for (int j = 0; j < p.k; ++j) sum += value(order[t * p.k + j]);
    p.y[static_cast<int64_t>(t) * p.D + row] = to_bf16(sum + value(p.T * p.k + t));
  }
}

template <Product P, int N, int WPT>
__global__ void __launch_bounds__(kThreads<N, WPT>, kBlocksPerProcessor<N, WPT>) up_kernel(const __grid_constant__ Experts p, Part part) {
  // The next kernel comes when all blocks are past this: what made the plan is done then.
  begin(part, true);
  extern __shared__ __align__(1024) char expert_shared[];
  __shared__ OwnPlan own;
  if (p.raw && blockIdx.x == 0 && blockIdx.y == 0) {
    for (int i = threadIdx.x; i < (p.D + kDownRows - 1) / kDownRows; i += blockDim.x) p.finished[i] = 0;
  }
  BlockTask task;
  int tasks;
  if (!find_task(p, part, own, task, tasks)) return;
  const int I = task.expert < 0 ? p.shared_I : p.I;
  if (static_cast<int>(blockIdx.x) * kUpRows >= I) return;
  const int tile = blockIdx.x * kTiles + threadIdx.x / 32 % kTiles;
  if (task.expert < 0) {
    prefetch_tile(p.shared_w1, tile);
    prefetch_tile(p.shared_w3, tile);
    up<Product::kFp8, N, WPT>(p, task, p.shared_w1, p.shared_w3, I, expert_shared);
  } else {
    const Matrix w1 = at(p.w1, task.expert), w3 = at(p.w3, task.expert);
    prefetch_tile(w1, tile);
    prefetch_tile(w3, tile);
    up<P, N, WPT>(p, task, w1, w3, I, expert_shared);
  }
  end(part);
}

template <Product P, int N, int WPT>
__global__ void __launch_bounds__(kThreads<N, WPT>, kBlocksPerProcessor<N, WPT>) down_kernel(const __grid_constant__ Experts p, Part part) {
  extern __shared__ __align__(1024) char expert_shared[];
  __shared__ OwnPlan own;
  // The plan is older than the kernel before this one, and read past L1: weights can be asked for now.
  BlockTask task;
  int tasks = 0;
  const bool found = find_task(p, part, own, task, tasks);
  if (found) {
    const int tile = (blockIdx.x * kTiles + threadIdx.x / 32 % kTiles) * kPair;
    const Matrix w2 = task.expert < 0 ? p.shared_w2 : at(p.w2, task.expert);
    prefetch_tile(w2, tile);
    prefetch_tile(w2, tile + 1);
  }
  begin(part, false);
  if (!found) return;
  if (task.expert < 0) down<Product::kFp8, N, WPT>(p, task, p.shared_w2, expert_shared);
  else down<P, N, WPT>(p, task, at(p.w2, task.expert), expert_shared);
  if (p.raw) combine(p, tasks);
  end(part);
}

template <int N>
constexpr int few_bytes(int blocks) {
  return N * few_stride(blocks) + kSumBytes<N>;
}
template <int N>
constexpr int kManyBytes = std::max(kRingBytes<N> + kPair * N / 2 * kManyThreads * 4, N * (kDownRows + 2) * 4);
template <int N>
constexpr int shared_bytes(int blocks) {
  return N <= kFew ? few_bytes<N>(blocks) : kManyBytes<N>;
}

template <Product P, int N, int WPT>
Status launch_up(OpContext& ctx, const Experts& p, unsigned tasks, Part part) {
  const int bytes = shared_bytes<N>(ceil_div(p.D, kBlockK));
  const int I = part == Part::kShared ? p.shared_I : part == Part::kRouted ? p.I : std::max(p.I, p.shared_I);
  DSV4_TRY(allow_shared(up_kernel<P, N, WPT>, bytes));
  const dim3 grid(static_cast<unsigned>(ceil_div(I, kUpRows)), tasks);
  return enqueue(ctx, "up_kernel", up_kernel<P, N, WPT>, grid, kThreads<N, WPT>, static_cast<size_t>(bytes), p, part);
}
template <Product P, int N, int WPT>
Status launch_down(OpContext& ctx, const Experts& p, unsigned tasks, Part part) {
  const int bytes = shared_bytes<N>(p.h_stride / kBlockK);
  DSV4_TRY(allow_shared(down_kernel<P, N, WPT>, bytes));
  const dim3 grid(static_cast<unsigned>(ceil_div(p.D, kDownRows)), tasks);
  return enqueue(ctx, "down_kernel", down_kernel<P, N, WPT>, grid, kThreads<N, WPT>, static_cast<size_t>(bytes), p, part);
}

template <Product P, int N, int WPT>
Status launch(OpContext& ctx, const Experts& p, unsigned tasks, bool shared_planned) {
  const Part part = shared_planned ? Part::kAll : Part::kRouted;
  const unsigned shared_tasks = static_cast<unsigned>(ceil_div(p.T, kManyTaskTokens));
  if (!shared_planned) DSV4_TRY((launch_up<Product::kFp8, kManyTaskTokens, 1>(ctx, p, shared_tasks, Part::kShared)));
  DSV4_TRY((launch_up<P, N, WPT>(ctx, p, tasks, part)));
  if (!shared_planned) DSV4_TRY((launch_down<Product::kFp8, kManyTaskTokens, 1>(ctx, p, shared_tasks, Part::kShared)));
  return launch_down<P, N, WPT>(ctx, p, tasks, part);
}

template <Product P>
Status launch_tokens(OpContext& ctx, const Experts& p, unsigned tasks, int per_task, bool shared_planned) {
  switch (per_task) {
    case 8: {
      // One block per processor and warps to spare, or two of half as many warps.
      const bool few = tasks * static_cast<unsigned>(ceil_div(std::max(p.I, p.shared_I), kUpRows)) <= kProcessors;
      return few ? launch<P, 8, 2>(ctx, p, tasks, shared_planned) : launch<P, 8, 1>(ctx, p, tasks, shared_planned);
    }
    case 16: return launch<P, 16, 2>(ctx, p, tasks, shared_planned);
    case 32: return launch<P, 32, 1>(ctx, p, tasks, shared_planned);
    default: return launch<P, kManyTaskTokens, 1>(ctx, p, tasks, shared_planned);
  }
}

}  // namespace

bool plans_itself(int64_t T, int64_t k, int64_t D) {
  // Every block rounds its rows and looks through all pairs: with 8 rows that took longer than two more kernels.
  constexpr int64_t kMostRows = 2;
  return T <= kMostRows && T * k <= kMostPairs && few_bytes<8>(static_cast<int>(ceil_div<int64_t>(D, kBlockK))) <= kMaxSharedBytes / 2;
}

int task_tokens(const Experts& p, int64_t pairs, int64_t E) {
  // Few tokens per expert: 8 waste least. Each expert sees pairs / E on average.
  const int blocks = std::max(ceil_div(p.D, kBlockK), p.h_stride / kBlockK);
  if (pairs <= 6 * E && few_bytes<8>(blocks) <= kMaxSharedBytes / 2) return 8;
  if (pairs <= 12 * E && few_bytes<16>(blocks) <= kMaxSharedBytes) return 16;
  return pairs <= 24 * E ? 32 : kManyTaskTokens;
}

Status experts(OpContext& ctx, const Experts& p, Product product, unsigned tasks, int per_task, bool shared_planned) {
  switch (product) {
    case Product::kMxfp4: return launch_tokens<Product::kMxfp4>(ctx, p, tasks, per_task, shared_planned);
    case Product::kNvfp4: return launch_tokens<Product::kNvfp4>(ctx, p, tasks, per_task, shared_planned);
    default: return launch_tokens<Product::kFp8>(ctx, p, tasks, per_task, shared_planned);
  }
}

}  // namespace dsv4::cuda
