// The experts of a layer, and those of many tokens:
//   up    w1 and w3 of 128 rows per block, clamp, SwiGLU, routing weight, act8 of h
//   down  w2, 256 rows per block, BF16 per expert
// Tasks have 32 or 64 tokens: blocks of K come through a ring, products are those of warpgroups (device/many.cuh).
// With many rows the shared expert has kernels of its own beside those of the others (Part). Fewer tokens per expert:
// experts_few.cu.
#include <algorithm>

#include "backends/cuda/device/experts.cuh"
#include "backends/cuda/device/many.cuh"
#include "backends/cuda/device/quantise.cuh"

namespace dsv4::cuda {
namespace {

constexpr int kTiles = 8;  // of 16 rows per matrix and block
constexpr int kUpRows = kTiles * kTileRows, kDownRows = kPair * kUpRows;
static_assert(kUpRows == kBlockK);
constexpr int kManyTaskTokens = 64;  // where experts have many tokens

// The task of a block: tokens of one expert, or of the shared one (-1).
struct BlockTask {
  int32_t expert, count, first;
  const int32_t* pairs;  // [count], or nullptr: first + n

  __device__ int pair(int n) const { return pairs ? pairs[n] : first + n; }
};

// What a block multiplies its tiles with: its tokens.
template <class RowOf>
struct Work {
  const bf16* x;   // rounded by act8, [row][stride]
  int32_t stride;
  int32_t blocks;  // of the product
  int32_t count;   // tokens
  RowOf row_of;    // of token n
};

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
  store_rounded(to, act8_four(h));
}

template <Product P, int N>
__device__ void up(const Experts& p, const BlockTask& task, const Matrix& w1, const Matrix& w3, int I, char* shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, local = warp % kTiles, tile = blockIdx.x * kTiles + local;
  const bool present = tile < w1.tiles();
  const Tile tiles[kPair] = {tile_of<P>(w1, present ? tile : 0), tile_of<P>(w3, present ? tile : 0)};
  const auto row_of = [&](int n) {
    const int pair = task.pair(n);
    return static_cast<int64_t>(task.expert < 0 ? pair - p.T * p.k : pair / p.k);
  };
  const Work<decltype(row_of)> w{p.x, w1.blocks() * kBlockK, w1.blocks(), task.count, row_of};
  const int rows = I - static_cast<int>(blockIdx.x) * kUpRows;  // of this block
  const auto h_of = [&](float a, float u) {
    return swiglu(round_bf16(a * w1.global_scale), round_bf16(u * w3.global_scale), p.limit);
  };
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
}

template <Product P, int N>
__device__ void down(const Experts& p, const BlockTask& task, const Matrix& w2, char* shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, local = warp % kTiles;
  Tile tiles[kPair];
#pragma unroll
  for (int m = 0; m < kPair; ++m) {
    const int tile = (blockIdx.x * kTiles + local) * kPair + m;
    tiles[m] = tile_of<P>(w2, tile < w2.tiles() ? tile : 0);
  }
  const auto row_of = [&](int n) { return static_cast<int64_t>(task.pair(n)); };
  const Work<decltype(row_of)> w{p.h, p.h_stride, w2.blocks(), task.count, row_of};
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
}

// The task of this block, if it has one: of the plan, or a piece of the rows for the shared expert alone.
__device__ bool find_task(const Experts& p, Part part, BlockTask& task) {
  const int y = static_cast<int>(blockIdx.y), pairs = p.T * p.k;
  if (part == Part::kShared) {
    task = {-1, min(kManyTaskTokens, p.T - y * kManyTaskTokens), pairs + y * kManyTaskTokens, nullptr};
    return true;
  }
  if (y >= __ldcg(&p.plan.count->tasks)) return false;
  const int4 raw = __ldcg(reinterpret_cast<const int4*>(p.plan.tasks + y));
  task = {raw.x, raw.z, pairs + raw.y, nullptr};
  if (raw.x >= 0) task.pairs = p.plan.lists + static_cast<int64_t>(raw.x) * p.T + raw.y;
  return true;
}

template <Product P, int N>
__global__ void __launch_bounds__(kManyThreads, 1) up_kernel(const __grid_constant__ Experts p, Part part) {
  // The next kernel comes when all blocks are past this: what made the plan is done then.
  begin(part, true);
  extern __shared__ __align__(1024) char expert_shared[];
  BlockTask task;
  if (!find_task(p, part, task)) return;
  const int I = task.expert < 0 ? p.shared_I : p.I;
  if (static_cast<int>(blockIdx.x) * kUpRows >= I) return;
  if (task.expert < 0) up<Product::kFp8, N>(p, task, p.shared_w1, p.shared_w3, I, expert_shared);
  else up<P, N>(p, task, at(p.w1, task.expert), at(p.w3, task.expert), I, expert_shared);
  end(part);
}

template <Product P, int N>
__global__ void __launch_bounds__(kManyThreads, 1) down_kernel(const __grid_constant__ Experts p, Part part) {
  extern __shared__ __align__(1024) char expert_shared[];
  // The plan is older than the kernel before this one, and read past L1.
  BlockTask task;
  const bool found = find_task(p, part, task);
  begin(part, false);
  if (!found) return;
  if (task.expert < 0) down<Product::kFp8, N>(p, task, p.shared_w2, expert_shared);
  else down<P, N>(p, task, at(p.w2, task.expert), expert_shared);
  end(part);
}

template <int N>
constexpr int kSharedBytes = std::max(kRingBytes<N> + kPair * N / 2 * kManyThreads * 4, N * (kDownRows + 2) * 4);

// One of the products, for `tasks` tasks of the plan or, with Part::kShared, for the shared expert's.
template <Product P, int N>
Status launch(OpContext& ctx, const Experts& p, unsigned tasks, bool is_up, Part part) {
  const auto kernel = is_up ? up_kernel<P, N> : down_kernel<P, N>;
  const int I = part == Part::kShared ? p.shared_I : part == Part::kRouted ? p.I : std::max(p.I, p.shared_I);
  const int columns = is_up ? ceil_div(I, kUpRows) : ceil_div(p.D, kDownRows);
  DSV4_TRY(allow_shared(kernel, kSharedBytes<N>));
  return enqueue(ctx, is_up ? "up_kernel" : "down_kernel", kernel, dim3(static_cast<unsigned>(columns), tasks), kManyThreads,
                 static_cast<size_t>(kSharedBytes<N>), p, part);
}

template <Product P>
Status launch_tokens(OpContext& ctx, const Experts& p, unsigned tasks, int per_task, bool is_up, Part part) {
  if (per_task < 32) return experts_few(ctx, p, P, per_task, is_up, part);
  return per_task == 32 ? launch<P, 32>(ctx, p, tasks, is_up, part) : launch<P, kManyTaskTokens>(ctx, p, tasks, is_up, part);
}

}  // namespace

int task_tokens(const Experts& p, int64_t pairs, int64_t E) {
  // Few tokens per expert: 8 waste least. Each expert sees pairs / E on average.
  const int few = few_task_tokens(std::max(ceil_div(p.D, kBlockK), p.h_stride / kBlockK));
  if (pairs <= 6 * E && few >= 8) return 8;
  if (pairs <= 12 * E && few >= 16) return 16;
  return pairs <= 24 * E ? 32 : kManyTaskTokens;
}

int shared_kernel_blocks(const Experts& p, bool is_up) {
  return ceil_div(p.T, kManyTaskTokens) * (is_up ? ceil_div(p.shared_I, kUpRows) : ceil_div(p.D, kDownRows));
}

Status experts(OpContext& ctx, const Experts& p, Product product, unsigned tasks, int per_task, bool shared_planned) {
  if (p.raw && fits_one_row(p)) return experts_one(ctx, p, product);
  const Part part = shared_planned ? Part::kAll : Part::kRouted;
  const unsigned shared_tasks = static_cast<unsigned>(ceil_div(p.T, kManyTaskTokens));
  for (const bool is_up : {true, false}) {
    if (!shared_planned) DSV4_TRY((launch<Product::kFp8, kManyTaskTokens>(ctx, p, shared_tasks, is_up, Part::kShared)));
    switch (product) {
      case Product::kMxfp4: DSV4_TRY(launch_tokens<Product::kMxfp4>(ctx, p, tasks, per_task, is_up, part)); break;
      case Product::kNvfp4: DSV4_TRY(launch_tokens<Product::kNvfp4>(ctx, p, tasks, per_task, is_up, part)); break;
      default: DSV4_TRY(launch_tokens<Product::kFp8>(ctx, p, tasks, per_task, is_up, part)); break;
    }
  }
  return {};
}

}  // namespace dsv4::cuda
