// Linear maps of many tokens: blocks of up to 256 rows x 64 tokens.
#include <algorithm>

#include "backends/cuda/core.h"
#include "backends/cuda/device/many.cuh"
#include "backends/cuda/device/quantise.cuh"
#include "backends/cuda/launch/linear.h"

namespace dsv4::cuda {
namespace {

constexpr int kEnoughBlocks = 100;  // of 132 processors, one block each
constexpr int kOutRow = 2 * kTileRows + 1;  // floats of one token and pair of tiles on their way out
constexpr int kOutTokens = kManyThreads;    // tokens times pairs of tiles at one time
constexpr int kOutBytes = kOutTokens * kOutRow * 4;

int stages_of(int stage_bytes) { return std::clamp(kMaxSharedBytes / stage_bytes, 2, 4); }

// Shared memory: the ring, and what lies behind it; the sums of shares that meet and the output reuse the ring.
struct Plan {
  int32_t stages, spare_at, bytes;
};

template <Product P>
__global__ void __launch_bounds__(kManyThreads, 1) linear_many_kernel(const __grid_constant__ LinearParams p, const Plan plan) {
  extern __shared__ uint4 shared[];
  char* ring = reinterpret_cast<char*>(shared);
  wait_for_previous();
  int j = 0;
  while (j + 1 < p.n && static_cast<int>(blockIdx.y) >= p.jobs[j + 1].first_block) ++j;
  const LinearJob& job = p.jobs[j];
  const int wk = job.side_by_side, pairs = kManyWarps / wk, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_tile = (blockIdx.y - job.first_block) * pairs * kManyTiles, first_token = blockIdx.x * kManyTokens;
  const int blocks = job.w.blocks(), tokens = min(kManyTokens, p.T - first_token);
  const int group = p.rows_per_group ? first_tile * kTileRows / p.rows_per_group : 0;

  Tile tiles[kManyTiles];
  bool inside[kManyTiles];
#pragma unroll
  for (int m = 0; m < kManyTiles; ++m) {
    const int tile = first_tile + warp / wk * kManyTiles + m;
    inside[m] = tile < job.w.tiles();
    tiles[m] = tile_of<P>(job.w, inside[m] ? tile : 0);
  }
  const auto row_of = [&](int n) { return n < tokens ? static_cast<int64_t>(first_token + n) : int64_t{-1}; };
  const Pieces<P> input(takes_act8(P) ? static_cast<const void*>(p.codes) : p.x + static_cast<int64_t>(group) * p.K,
                        takes_act8(P) ? static_cast<int64_t>(blocks) * kBlockK : p.x_stride * 2, p.scales, blocks, row_of);
  ManySums total = {};
  float* spare = reinterpret_cast<float*>(ring + (wk == 1 ? plan.spare_at : 0));
  multiply_many<P>(tiles, inside, blocks, job.split, wk, plan.stages, input, ring, spare, total);

  // Through shared memory, so that neighbouring threads write neighbouring rows.
  float* out = reinterpret_cast<float*>(ring);
  const int per_pass = min(kManyTokens, kOutTokens / pairs), rows = pairs * kManyTiles * kTileRows;
  const int per_warp = kManySums / wk, k = warp % wk;
  for (int pass = 0; pass < kManyTokens; pass += per_pass) {
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kManySums; ++e) {
      if (e / per_warp != k) continue;
      const int m = e / (kManyGroups * 4), n = e / 4 % kManyGroups, i = e % 4;
      const int token = n * 8 + lane % 4 * 2 + i % 2 - pass;
      if (token < 0 || token >= per_pass) continue;
      out[(warp / wk * per_pass + token) * kOutRow + m * kTileRows + lane / 4 + i / 2 * 8] = total[m][n][i] * job.w.global_scale;
    }
    __syncthreads();
    const int here = min(per_pass, tokens - pass);
    const bool in_pairs = job.w.rows % 2 == 0;
    for (int at = threadIdx.x; at < here * rows / 2; at += kManyThreads) {
      const int token = at / (rows / 2), r = at % (rows / 2) * 2, row = first_tile * kTileRows + r;
      if (row >= job.w.rows) continue;
      const float* from = out + (r / (2 * kTileRows) * per_pass + token) * kOutRow + r % (2 * kTileRows);
      const int64_t to = static_cast<int64_t>(first_token + pass + token) * job.w.rows + row;
      const bool both = row + 1 < job.w.rows;
      if (job.y_f32) {
        float* y = static_cast<float*>(job.y) + to;
        if (in_pairs) *reinterpret_cast<float2*>(y) = {from[0], from[1]};
        else for (int i = 0; i <= both; ++i) y[i] = from[i];
      } else {
        bf16* y = static_cast<bf16*>(job.y) + to;
        if (in_pairs) {
          *reinterpret_cast<uint32_t*>(y) = static_cast<uint32_t>(to_bf16(from[0]).bits) |
                                            static_cast<uint32_t>(to_bf16(from[1]).bits) << 16;
        } else {
          for (int i = 0; i <= both; ++i) y[i] = to_bf16(from[i]);
        }
      }
    }
  }
}

int grid_rows(const LinearJob& job) { return ceil_div(job.w.tiles(), kManyWarps / job.side_by_side * kManyTiles); }

template <Product P>
Status launch_product(OpContext& ctx, const LinearParams& all) {
  LinearParams p = all;
  p.n = 0;
  for (int i = 0; i < all.n; ++i) {
    if (all.jobs[i].product == P) p.jobs[p.n++] = all.jobs[i];
  }
  if (p.n == 0) return {};
  int grid = 0, widest = 1;
  bool spare = false;
  for (int i = 0; i < p.n; ++i) {
    p.jobs[i].first_block = grid;
    grid += grid_rows(p.jobs[i]);
    widest = std::max(widest, p.jobs[i].side_by_side);
    spare |= p.jobs[i].side_by_side == 1 && p.jobs[i].split > 1;
  }
  constexpr int kSpareBytes = kManySums * kManyThreads * 4;
  Plan plan{.stages = stages_of(widest * kStageBytes<P>)};
  const int ring = plan.stages * widest * kStageBytes<P>;
  plan.spare_at = ring;
  plan.bytes = std::max({ring + (spare ? kSpareBytes : 0), kOutBytes, widest > 1 ? kSpareBytes : 0});
  DSV4_TRY(allow_shared(linear_many_kernel<P>, plan.bytes));
  const dim3 blocks(static_cast<unsigned>(ceil_div(p.T, kManyTokens)), static_cast<unsigned>(grid));
  return enqueue(ctx, "linear_many_kernel", linear_many_kernel<P>, blocks, kManyThreads, static_cast<size_t>(plan.bytes), p, plan);
}

}  // namespace

Status linear_many(OpContext& ctx, LinearParams& p) {
  // Blocks that the grid has with one warp per tile: enough, or the shares of K side by side.
  int64_t blocks = 0;
  for (int i = 0; i < p.n; ++i) {
    p.jobs[i].side_by_side = 1;
    blocks += grid_rows(p.jobs[i]) * ceil_div<int64_t>(p.T, kManyTokens);
  }
  LinearParams few = p;
  LinearParams many = p;
  few.n = many.n = 0;
  for (int i = 0; i < p.n; ++i) {
    LinearJob job = p.jobs[i];
    const int stage = takes_act8(job.product) ? kStageBytes<Product::kFp8> : kStageBytes<Product::kBf16>;
    if (blocks < kEnoughBlocks) job.side_by_side = job.split;
    const bool fits = 2 * job.side_by_side * stage <= kMaxSharedBytes;
    // A block's rows share one input.
    const int rows = kManyWarps / job.side_by_side * kManyTiles * kTileRows;
    const bool one_group = p.rows_per_group == 0 || p.rows_per_group % rows == 0;
    (fits && one_group && !is_fp4(job.product) ? many.jobs[many.n++] : few.jobs[few.n++]) = job;
  }
  p = few;
  DSV4_TRY(launch_product<Product::kBf16>(ctx, many));
  DSV4_TRY(launch_product<Product::kFp8>(ctx, many));
  return launch_product<Product::kFp8Bf16>(ctx, many);
}

}  // namespace dsv4::cuda
