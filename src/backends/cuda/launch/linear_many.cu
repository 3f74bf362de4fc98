// Linear maps of many tokens: blocks of 128 rows x 32, 64 or 128 tokens x a share of K. The shares of the same rows
// are a cluster, which adds them up.
#include <cooperative_groups.h>

#include <algorithm>

#include "backends/cuda/core.h"
#include "backends/cuda/device/many.cuh"
#include "backends/cuda/launch/linear.h"

namespace dsv4::cuda {
namespace {

constexpr int kSumRow = kManyRows + 4;  // floats of one token's sums on their way out: lanes meet different banks
constexpr int kNearTiles = 8;           // of tokens: their blocks run at one time, so that L2 holds what they share
template <int N>
constexpr int kSharedBytes = std::max(kRingBytes<N>, N * kSumRow * 4);
// Two blocks on a processor where registers allow it.
template <Product P, int N>
constexpr int kBlocksPerProcessor = N <= 64 && P == Product::kFp8 ? 2 : 1;

// The rows of a grid: for each of `cluster` blocks in turn a share of K, then the next 128 rows.
struct Grid {
  int32_t cluster, row_clusters, token_tiles;
};

template <Product P, int N>
__global__ void __launch_bounds__(kManyThreads, kBlocksPerProcessor<P, N>)
    linear_many_kernel(const __grid_constant__ LinearParams p, const Grid grid) {
  extern __shared__ __align__(1024) char shared[];
  namespace cg = cooperative_groups;
  const int index = blockIdx.x / grid.cluster, rank = blockIdx.x % grid.cluster;
  const int near = index / (kNearTiles * grid.row_clusters) * kNearTiles, in_near = index % (kNearTiles * grid.row_clusters);
  const int tiles = min(kNearTiles, grid.token_tiles - near), row_cluster = in_near / tiles;
  const int first_token = (near + in_near % tiles) * N, tokens = min(N, p.T - first_token);
  int j = 0;
  while (j + 1 < p.n && row_cluster >= p.jobs[j + 1].first_block) ++j;
  const LinearJob& job = p.jobs[j];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, share = rank % job.split;
  const int first_row = ((row_cluster - job.first_block) * (grid.cluster / job.split) + rank / job.split) * kManyRows;
  const int blocks = job.w.blocks(), tile = first_row / kTileRows + warp;
  const bool inside = tile < job.w.tiles();
  const Tile mine[1] = {tile_of<P>(job.w, inside ? tile : 0)};
  // Weights do not depend on the kernels before.
  Held<P, 1> weights = {};
  if (inside && share < blocks) load_blocks<P>(mine, share, weights[0]);
  wait_for_previous();

  const int group = p.rows_per_group ? first_row / p.rows_per_group : 0;
  const int64_t stride = job.act8 ? blocks * kBlockK : p.x_stride;  // elements
  const bf16* x = (job.act8 ? p.act8 : p.x + static_cast<int64_t>(group) * p.K) + first_token * stride;
  const InputPieces<N> input(x, stride * 2, tokens, [](int n) { return static_cast<int64_t>(n); });
  const int count = first_row < job.w.rows ? (blocks - share + job.split - 1) / job.split : 0;
  float total[1][N / 2] = {};
  multiply_many<P, 1, N>(mine, share, count, [&](int block) { return block + job.split; }, weights, input, shared, total,
                         [](int, int) { return false; }, [](auto&) {});
  __syncthreads();

  // Sums [token][row] through shared memory; the blocks of a cluster share the tokens out among them.
  float* sums = reinterpret_cast<float*>(shared);
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int e = 0; e < N / 2; ++e) {
    sums[(e / 4 * 8 + 2 * t + e % 2) * kSumRow + warp * kTileRows + g + e % 4 / 2 * 8] = total[0][e];
  }
  const cg::cluster_group cluster = cg::this_cluster();
  if (grid.cluster > 1) cluster.sync();
  else __syncthreads();
  const int row = first_row + lane * 4, rows = job.w.rows;
  const auto store = [&](int token, float4 y) {
    const float scale = job.w.global_scale;
    y = {y.x * scale, y.y * scale, y.z * scale, y.w * scale};
    const int64_t to = static_cast<int64_t>(first_token + token) * rows + row;
    if (job.y_f32) {
      float* out = static_cast<float*>(job.y) + to;
      if (rows % 4 == 0) {
        *reinterpret_cast<float4*>(out) = y;
        return;
      }
      const float all[4] = {y.x, y.y, y.z, y.w};
      for (int i = 0; i < min(4, rows - row); ++i) out[i] = all[i];
      return;
    }
    bf16* out = static_cast<bf16*>(job.y) + to;
    const auto pair = [](float low, float high) { return to_bf16(low).bits | static_cast<uint32_t>(to_bf16(high).bits) << 16; };
    const uint2 all = {pair(y.x, y.y), pair(y.z, y.w)};
    if (rows % 4 == 0) {
      *reinterpret_cast<uint2*>(out) = all;
      return;
    }
    for (int i = 0; i < min(4, rows - row); ++i) out[i] = bf16{static_cast<uint16_t>((i < 2 ? all.x : all.y) >> i % 2 * 16)};
  };
  const auto add = [](float4& y, const float4& v) { y = {y.x + v.x, y.y + v.y, y.z + v.z, y.w + v.w}; };
  if (row < rows && job.split == 1) {
#pragma unroll 4
    for (int token = warp; token < tokens; token += kManyThreads / 32) {
      float4 y = {0, 0, 0, 0};
      add(y, *reinterpret_cast<const float4*>(sums + token * kSumRow + lane * 4));
      store(token, y);
    }
  } else if (row < rows) {
    const int per_share = (tokens + job.split - 1) / job.split, end = min(tokens, (share + 1) * per_share);
    for (int token = share * per_share + warp; token < end; token += kManyThreads / 32) {
      float4 y = {0, 0, 0, 0};
#pragma unroll 8
      for (int s = 0; s < job.split; ++s) {
        add(y, *reinterpret_cast<const float4*>(cluster.map_shared_rank(sums, rank - share + s) + token * kSumRow + lane * 4));
      }
      store(token, y);
    }
  }
  if (grid.cluster > 1) cluster.sync();  // nobody leaves while others read its sums
}

template <Product P, int N>
Status launch(OpContext& ctx, const LinearParams& p, Grid grid) {
  grid.token_tiles = ceil_div(p.T, N);
  DSV4_TRY(allow_shared(linear_many_kernel<P, N>, kSharedBytes<N>));
  const unsigned blocks = static_cast<unsigned>(grid.cluster * grid.row_clusters * grid.token_tiles);
  return enqueue_clusters(ctx, "linear_many_kernel", linear_many_kernel<P, N>, dim3(blocks), static_cast<unsigned>(grid.cluster),
                          kManyThreads, static_cast<size_t>(kSharedBytes<N>), p, grid);
}

template <Product P>
Status launch_product(OpContext& ctx, const LinearParams& all) {
  LinearParams p = all;
  p.n = 0;
  for (int i = 0; i < all.n; ++i) {
    if (all.jobs[i].product == P) p.jobs[p.n++] = all.jobs[i];
  }
  if (p.n == 0) return {};
  Grid grid{.cluster = 1, .row_clusters = 0, .token_tiles = 0};
  for (int i = 0; i < p.n; ++i) grid.cluster = std::max(grid.cluster, p.jobs[i].split);
  for (int i = 0; i < p.n; ++i) {
    p.jobs[i].first_block = grid.row_clusters;
    grid.row_clusters += ceil_div(p.jobs[i].w.rows, kManyRows * (grid.cluster / p.jobs[i].split));
  }
  // As many tokens as there are; but rather twice as many blocks than processors without work.
  if (p.T <= 32) return launch<P, 32>(ctx, p, grid);
  if (p.T <= 64 || grid.cluster * grid.row_clusters * ceil_div(p.T, 128) < 2 * kProcessors) return launch<P, 64>(ctx, p, grid);
  return launch<P, 128>(ctx, p, grid);
}

}  // namespace

Status linear_many(OpContext& ctx, LinearParams& p) {
  if (p.rows_per_group % kManyRows != 0) return {};
  DSV4_TRY(launch_product<Product::kBf16>(ctx, p));
  DSV4_TRY(launch_product<Product::kFp8>(ctx, p));
  DSV4_TRY(launch_product<Product::kMxfp4>(ctx, p));
  DSV4_TRY(launch_product<Product::kNvfp4>(ctx, p));
  p.n = 0;
  return {};
}

}  // namespace dsv4::cuda
