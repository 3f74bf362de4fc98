// linear, linear_stack, grouped_linear: several matrices over one input in one launch.
#include "backends/cuda/launch/linear.h"

#include <algorithm>

#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/multiply.cuh"
#include "backends/cuda/device/quantise.cuh"
#include "backends/cuda/ops.h"
#include "base/str.h"
#include "ops/check.h"

namespace dsv4::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kFewTokens = 8;                // of one block at most
constexpr int kSharedBytes = 112 * 1024;     // of a block: two share a processor
constexpr unsigned kBlocksAtATime = 2 * kProcessors;
constexpr int kOwnTokens = 2;                // whose act8 every block makes for itself,
constexpr int kOwnGroups = 64;               // or as many groups of 128 of more tokens
constexpr int kMostCluster = 2;              // of 4 they were slower
constexpr int kShareSums = kFewTokens * kTileRows;
constexpr int kSumBytes = kWarps * kShareSums * 4;

// n / d and n % d where d is a power of two, as all shares and blocks are that share something: a division takes 30
// instructions, which come from memory when a step reaches them.
__device__ int quotient(int n, int d) { return n >> (31 - __clz(d)); }
__device__ int remainder(int n, int d) { return n & (d - 1); }

// The part of K that a block has: blocks of 128, its shares in turn.
struct Slice {
  int first, own, split, count;  // the first one; of neighbouring shares, of how many; how many in all

  __device__ Slice(const LinearJob& job, int rank)
      : first(rank * job.own), own(job.own), split(job.split), count(quotient(job.w.blocks() + job.split - 1, job.split) * job.own) {}
  __device__ int block(int i) const { return first + quotient(i, own) * split + remainder(i, own); }
  // From block(i) to block(i + n), n a multiple of `own`.
  __device__ int blocks_in(int n) const { return quotient(n, own) * split; }
};

// squares[t] += this thread's share of row t of K values; those of the last row for rows past it. What is loaded is under way
// together.
template <int N>
__device__ void add_squares(const LinearParams& p, int K, float (&squares)[kFewTokens]) {
#pragma unroll 2
  for (int i = threadIdx.x; i < K / 2; i += kWarps * 32) {
    uint32_t both[N];
#pragma unroll
    for (int t = 0; t < N; ++t) both[t] = reinterpret_cast<const uint32_t*>(p.x + min(t, p.T - 1) * p.x_stride)[i];
#pragma unroll
    for (int t = 0; t < N; ++t) {
      const float low = bits_to_float(both[t] << 16), high = bits_to_float(both[t] & 0xffff0000u);
      squares[t] = __fmaf_rn(low, low, __fmaf_rn(high, high, squares[t]));
    }
  }
}

// 1 / root mean square of row t in lane t, of up to 8 rows (in those after it, of the last), with the sums of rms_norm.
// K = 0: of ones, nothing is read. `sums` [8][kWarps].
__device__ float inverse_rms(const LinearParams& p, int K, float (*sums)[kWarps]) {
  // Square roots and quotients of zeros take a longer way, which begins by waiting for all loads.
  float squares[kFewTokens];
  for (float& s : squares) s = K == 0 ? 1.0f : 0.0f;
  if (p.T == 1) add_squares<1>(p, K, squares);
  else add_squares<kFewTokens>(p, K, squares);
#pragma unroll
  for (int t = 0; t < kFewTokens; ++t) {
    if (t >= p.T) break;
    const float sum = warp_sum(squares[t]);
    if (threadIdx.x % 32 == 0) sums[t][threadIdx.x / 32] = sum;
  }
  __syncthreads();
  const float* const mine = sums[min(static_cast<int>(threadIdx.x % 32), p.T - 1)];
  float sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) sum += mine[w];
  return 1.0f / sqrtf(sum / static_cast<float>(p.K) + p.norm_eps);
}

// Values k .. k + 7 of a row, 0 past its end, on their way into shared memory where `wanted`.
__device__ void stage_eight(const bf16* row, int k, int cols, char* to, bool wanted) {
  if (k + 8 <= cols && cols % 8 == 0) return copy_async_16_if(to, row + k, wanted);
  if (!wanted) return;
#pragma unroll 1
  for (int i = 0; i < 8; ++i) reinterpret_cast<bf16*>(to)[i] = k + i < cols ? row[k + i] : bf16{};
}
__device__ void load_eight(const char* shared, float (&v)[8]) {
  const uint4 w = *reinterpret_cast<const uint4*>(shared);
  const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 both = unpack2(words[i]);
    v[2 * i] = both.x;
    v[2 * i + 1] = both.y;
  }
}

// The slice of the tokens of a block, whose tiles are of one group, in shared memory: rows `stride` bytes apart and, where
// there is a norm, its weights behind them. Waits for the kernels before.
// Half a warp has a group of 128, each thread the same 8 values of every 16th group from the copy to act8, so that no thread
// waits for others. Between two runs of this kernel its code has left the caches, and with few tokens fetching it takes
// longer than all else; so there is little of it, and it is run once before the wait, on nothing.
constexpr int kHalves = kWarps * 2;
__device__ void stage_tokens(const LinearParams& p, const LinearJob& job, const Slice& slice, int first_tile, int first_token, int tokens,
                             char* rows, int stride) {
  __shared__ float norm_sums[2][kFewTokens][kWarps];
  const bool rounds = job.act8 && !p.act8;
  const int half = threadIdx.x / 16, piece = threadIdx.x % 16, lane = threadIdx.x % 32;
  const int group = p.rows_per_group ? first_tile * kTileRows / p.rows_per_group : 0;
  const bool made = job.act8 && p.act8;
  const int cols = made ? job.w.blocks() * kBlockK : p.K;
  const int64_t x_stride = made ? cols : p.x_stride;
  const bf16* const x = (made ? p.act8 : p.x) + first_token * x_stride + static_cast<int64_t>(group) * p.K;
  const int first_k = slice.block(half) * kBlockK + piece * 8, k_step = slice.blocks_in(kHalves) * kBlockK;
  char* const mine = rows + half * (kBlockK * 2) + piece * 16;  // of the first token and group
  const auto stage = [&](const bf16* row, char* to, bool wanted) {
#pragma unroll 1
    for (int i = half, k = first_k; i < slice.count; i += kHalves, k += k_step) {
      stage_eight(row, k, cols, to, wanted);
      to += kHalves * (kBlockK * 2);
    }
  };
  if (p.norm) stage(p.norm, mine + tokens * stride, true);
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    const bool real = pass == 1;
    const int through = real ? tokens : 1;
    if (real) previous_done();
    const bf16* row = x;
#pragma unroll 1
    for (int t = 0; t < through; ++t, row += x_stride) stage(row, mine + t * stride, real);
    const float inverse = rounds && p.norm ? inverse_rms(p, real ? p.K : 0, norm_sums[pass]) : 0.0f;
    if (real) {
      copy_async_commit();
      copy_async_wait<0>();
    }
    if (!rounds) continue;
#pragma unroll 1
    for (int t = 0; t < through; ++t) {
      char* at = mine + t * stride;
#pragma unroll 1
      for (int i = half; i - lane / 16 < (real ? slice.count : kHalves); i += kHalves, at += kHalves * (kBlockK * 2)) {
        const bool present = real && i < slice.count;
        float v[8] = {};
        if (present) load_eight(at, v);
        if (p.norm) {
          float factor[8] = {};
          const float by = __shfl_sync(~0u, inverse, t);
          if (present) load_eight(at + (tokens - t) * stride, factor);
#pragma unroll
          for (int e = 0; e < 8; ++e) v[e] = v[e] * by * factor[e];
#pragma unroll
          for (int e = 0; e < 8; e += 2) round2(v[e], v[e + 1]);
        }
        uint32_t pairs[4];
        act8_values(v, pairs);
        __syncwarp();  // all have read
        if (present) {
          uint32_t* const to = reinterpret_cast<uint32_t*>(at - piece * 16) + rounded_place(8 * piece) / 2;
#pragma unroll
          for (int e = 0; e < 4; ++e) to[rounded_place(2 * e) / 2] = pairs[e];
        }
      }
    }
  }
}

// total = this warp's tile times the tokens of the block, over share `part` of K. Weights do not depend on the kernels
// before: the first are on their way while those still run.
template <Product P>
__device__ void multiply_share(const LinearParams& p, const LinearJob& job, const Slice& slice, int first_tile, int tile, int part,
                               int first_token, int tokens, char* rows, float (&total)[1][1][4]) {
  const bool inside = tile < job.w.tiles();
  const int blocks = job.w.blocks(), stride = few_stride(slice.count);
  const Tile tiles[1] = {tile_of<P>(job.w, inside ? tile : 0)};
  Ahead<P, 1> ahead;
  if (inside) load_ahead<P>(tiles, blocks, part, job.split, ahead);
  let_next_come();
  blocks_started();
  if (first_tile < job.w.tiles()) stage_tokens(p, job, slice, first_tile, first_token, tokens, rows, stride);
  else previous_done();
  __syncthreads();
  const char* x[1];
  few_tokens(rows, stride, tokens, x);
  if (inside) multiply<P>(tiles, blocks, part, job.split, ahead, x, (part - slice.first) * (kBlockK * 2), slice.own * (kBlockK * 2), total);
}

// Shares of K in order, sums [tiles][shares][16 rows][8 tokens] of tiles first, first + step, ..., a power of two of them or
// none; neighbouring threads write neighbouring rows of one token.
__device__ void add_shares(const LinearJob& job, const float* sums, int first_tile, int step, int tiles, int first_token, int tokens) {
#pragma unroll 1
  for (int i = threadIdx.x; i < tiles * tokens * kTileRows; i += kWarps * 32) {
    const int r = i % kTileRows, place = remainder(i / kTileRows, tiles), token = quotient(i / kTileRows, tiles);
    const int out_row = (first_tile + place * step) * kTileRows + r;
    if (out_row >= job.w.rows) continue;
    float sum = 0.0f;
    for (int w = 0; w < job.split; ++w) sum += sums[(place * job.split + w) * kShareSums + r * kFewTokens + token];
    sum *= job.w.global_scale;
    const int64_t at = static_cast<int64_t>(first_token + token) * job.w.rows + out_row;
    if (job.y_f32) static_cast<float*>(job.y)[at] = sum;
    else static_cast<bf16*>(job.y)[at] = to_bf16(sum);
  }
}

// The blocks of 128 of a warp's tile that it multiplies: block, block + step, ...
template <Product P>
struct Piece {
  const uint8_t *codes, *scales;  // of the next one
  int left, step;

  __device__ Piece(const LinearJob& job) {
    const int warp = threadIdx.x / 32, local = quotient(warp, job.own), part = remainder(warp, job.own);
    const int tile = static_cast<int>(blockIdx.x) * job.tiles_here + local;
    const bool present = local < job.tiles_here && tile < job.w.tiles();
    const Tile t = tile_of<P>(job.w, present ? tile : 0);
    codes = t.codes + part * kBlockBytes<P>;
    scales = t.scales + part;
    left = present ? quotient(job.w.blocks() - part + job.split - 1, job.split) : 0;
    step = job.split;
  }
  __device__ void load(Block<P>& to) {
    if (left == 0) return;
    load_block<P>({codes, scales}, 0, to);
    codes += step * kBlockBytes<P>;
    scales += step;
    --left;
  }
};

// Two jobs of more blocks than the GPU holds, so that those left over would run after the others, with a start and an end
// of their own: every block has the same part of both, and their weights come in one stream.
constexpr int kBoth = 2;
template <Product P>
__global__ void __launch_bounds__(kWarps * 32, 2) both_linear_kernel(const __grid_constant__ LinearParams p) {
  extern __shared__ uint4 dynamic[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  float* const sums = reinterpret_cast<float*>(dynamic);  // [jobs][tiles][shares][16 rows][8 tokens]
  char* const rows = reinterpret_cast<char*>(sums + kBoth * kWarps * kShareSums);
  const Slice all(p.jobs[0], 0);
  const int stride = few_stride(all.count);
  Piece<P> piece(p.jobs[0]), second(p.jobs[1]);
  const int blocks[kBoth] = {piece.left, second.left};
  const auto load = [&](Block<P>& to) {
    if (piece.left == 0) {
      piece = second;
      second.left = 0;
    }
    piece.load(to);
  };
  Ahead<P, 1> ahead;
#pragma unroll
  for (int d = 0; d < kDepth<P>; ++d) load(ahead[d][0]);
  let_next_come();
  stage_tokens(p, p.jobs[0], all, 0, 0, p.T, rows, stride);
  __syncthreads();
  const char* x[1];
  few_tokens(rows, stride, p.T, x);
#pragma unroll
  for (int j = 0; j < kBoth; ++j) {
    const LinearJob& job = p.jobs[j];
    const int local = quotient(warp, job.own), part = remainder(warp, job.own);
    float total[1][1][4] = {};
    int at = part * (kBlockK * 2), last = 0;
    for (int first = 0; first < blocks[j]; first += kDepth<P>) {
#pragma unroll
      for (int d = 0; d < kDepth<P>; ++d) {
        if (first + d >= blocks[j]) break;
        const Block<P> b[1] = {ahead[d][0]};
        load(ahead[d][0]);
        multiply_groups<P, 4>(b, x, at, total);
        at += job.split * (kBlockK * 2);
        last = d + 1;
      }
    }
    if (j + 1 < kBoth) {
      // The second job's first block came behind the first one's last: to place 0.
      for (; last % kDepth<P> != 0; --last) {
        const Block<P> first = ahead[0][0];
#pragma unroll
        for (int d = 0; d + 1 < kDepth<P>; ++d) ahead[d][0] = ahead[d + 1][0];
        ahead[kDepth<P> - 1][0] = first;
      }
    }
    if (local >= job.tiles_here) continue;
    float* to = sums + (j * kWarps + local * job.split + part) * kShareSums + g * kFewTokens + 2 * t;
    for (int i = 0; i < 2; ++i) *reinterpret_cast<float2*>(to + i * 8 * kFewTokens) = float2{total[0][0][2 * i], total[0][0][2 * i + 1]};
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kBoth; ++j) {
    const LinearJob& job = p.jobs[j];
    add_shares(job, sums + j * kWarps * kShareSums, static_cast<int>(blockIdx.x) * job.tiles_here, 1, job.tiles_here, 0, p.T);
  }
}

__global__ void __launch_bounds__(kWarps * 32, 2) linear_kernel(const __grid_constant__ LinearParams p) {
  extern __shared__ uint4 dynamic[];
  __shared__ Arrivals sums_here;
  int j = 0;
  while (j + 1 < p.n && static_cast<int>(blockIdx.x) >= p.jobs[j + 1].first_block) ++j;
  const LinearJob& job = p.jobs[j];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int in_job = blockIdx.x - job.first_block, rank = remainder(in_job, job.sharing), in_cluster = remainder(blockIdx.x, p.cluster) - rank;
  const int tiles_here = job.tiles_here, first_tile = quotient(in_job, job.sharing) * tiles_here;
  // Of those, this block adds up tiles rank, rank + sharing, ...
  const int mine = quotient(tiles_here - rank + job.sharing - 1, job.sharing);
  if (threadIdx.x == 0) expect_arrivals(sums_here, job.sharing > 1 ? static_cast<uint32_t>(mine * job.split * kShareSums * 4) : 0);
  block_started();
  const Slice slice(job, rank);
  const int first_token = blockIdx.y * p.few, tokens = min(p.few, p.T - first_token);
  const int local = quotient(warp, job.own), part = slice.first + remainder(warp, job.own);
  const int tile = local < tiles_here ? first_tile + local : job.w.tiles();
  float* const sums = reinterpret_cast<float*>(dynamic);  // [tiles][shares][16 rows][8 tokens]
  char* const rows = reinterpret_cast<char*>(sums + kWarps * kShareSums);
  float total[1][1][4] = {};
  switch (job.product) {
    case Product::kBf16: multiply_share<Product::kBf16>(p, job, slice, first_tile, tile, part, first_token, tokens, rows, total); break;
    case Product::kFp8: multiply_share<Product::kFp8>(p, job, slice, first_tile, tile, part, first_token, tokens, rows, total); break;
    case Product::kMxfp4: multiply_share<Product::kMxfp4>(p, job, slice, first_tile, tile, part, first_token, tokens, rows, total); break;
    case Product::kNvfp4: multiply_share<Product::kNvfp4>(p, job, slice, first_tile, tile, part, first_token, tokens, rows, total); break;
  }

  if (local < tiles_here) {
    float* to = sums + (quotient(local, job.sharing) * job.split + part) * kShareSums + g * kFewTokens + 2 * t;
    for (int i = 0; i < 2; ++i) {
      const float2 both = {total[0][0][2 * i], total[0][0][2 * i + 1]};
      if (job.sharing == 1) *reinterpret_cast<float2*>(to + i * 8 * kFewTokens) = both;
      else send(reinterpret_cast<uint2*>(to + i * 8 * kFewTokens), uint2{float_to_bits(both.x), float_to_bits(both.y)}, sums_here, in_cluster + remainder(local, job.sharing));
    }
  }
  if (job.sharing == 1) __syncthreads();
  else wait_arrivals(sums_here);
  add_shares(job, sums, first_tile + rank, job.sharing, mine, first_token, tokens);
}

// What becomes of a row besides zeros up to whole blocks: nothing, the order of rounded tokens, act8.
enum class Input : uint8_t { kAsIs, kOrdered, kAct8 };

// A warp per group of 128.
__global__ void input_kernel(const bf16* x, int64_t rows, int cols, Input how, bf16* out) {
  wait_for_previous();
  const int blocks = (cols + kBlockK - 1) / kBlockK;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (i >= rows * blocks) return;
  float v[4];
  load_group(x + i / blocks * cols, cols, static_cast<int>(i % blocks), v);
  const auto pair = [&](float low, float high) { return float_to_bits(low) >> 16 | float_to_bits(high); };
  const uint2 four = how == Input::kAct8 ? act8_four(v) : uint2{pair(v[0], v[1]), pair(v[2], v[3])};
  if (how == Input::kAsIs) reinterpret_cast<uint2*>(out + i * kBlockK)[threadIdx.x % 32] = four;
  else store_rounded(out + i * kBlockK, four);
}

Result<const bf16*> padded_input(OpContext& ctx, Workspace::Scope& scratch, const bf16* x, int64_t rows, int cols, Input how) {
  const int64_t blocks = ceil_div(cols, kBlockK);
  DSV4_ASSIGN(bf16* out, scratch.take<bf16>(rows * blocks * kBlockK));
  DSV4_TRY(enqueue(ctx, "input_kernel", input_kernel, static_cast<unsigned>(ceil_div<int64_t>(rows * blocks, 8)), 256, 0, x, rows, cols, how, out));
  return static_cast<const bf16*>(out);
}

// Both jobs, of E4M3, in the same blocks.
Status run_both(OpContext& ctx, LinearParams& p, int bytes) {
  int grid = 0;
  for (int i = 0; i < kBoth; ++i) {
    LinearJob& job = p.jobs[i];
    job.own = job.split;
    job.tiles_here = kWarps / job.own;
    grid = std::max(grid, ceil_div(job.w.tiles(), job.tiles_here));
  }
  const auto kernel = both_linear_kernel<Product::kFp8>;
  DSV4_TRY(allow_shared(kernel, bytes));
  return enqueue(ctx, "both_linear_kernel", kernel, static_cast<unsigned>(grid), kWarps * 32, static_cast<size_t>(bytes), p);
}

// The rows of a grouped input hold `groups` slices of K and are not rounded.
Status run(OpContext& ctx, LinearParams p, bool grouped, int64_t groups) {
  if (p.T == 0) return {};
  Workspace::Scope scratch(ctx.workspace);
  bool act8 = false, raw = false;
  for (int i = 0; i < p.n; ++i) {
    LinearJob& job = p.jobs[i];
    DSV4_TRY(check_dim("linear", "K of the weight", p.K, job.w.cols));
    job.product = product_of(job.w.format);
    job.act8 = job.product != Product::kBf16 && !grouped;
    job.split = split_k(job.w.tiles(), job.w.blocks());
    (job.act8 ? act8 : raw) = true;
  }
  const int blocks = ceil_div(p.K, kBlockK);
  p.cluster = 1;
  for (int i = 0; i < p.n; ++i) p.cluster = std::max(p.cluster, std::min(p.jobs[i].split, kMostCluster));
  int slice = 0;  // the most blocks of K of a block
  for (int i = 0; i < p.n; ++i) {
    LinearJob& job = p.jobs[i];
    job.sharing = std::min(job.split, p.cluster);
    job.own = job.split / job.sharing;
    slice = std::max(slice, ceil_div(blocks, job.split) * job.own);
  }
  p.few = std::clamp((kSharedBytes - kSumBytes) / few_stride(slice), 1, kFewTokens);
  const int with_norm = p.T + (p.norm ? 1 : 0);  // rows
  const bool fits = p.T <= kFewTokens && kSumBytes + with_norm * few_stride(slice) <= kSharedBytes;
  const bool stages = act8 && fits && (p.T <= kOwnTokens || p.T * slice <= kOwnGroups);
  if (p.norm && (!stages || raw || p.K % 2 != 0)) {
    DSV4_ASSIGN(bf16* normed, scratch.take<bf16>(static_cast<int64_t>(p.T) * p.K));
    DSV4_TRY(rms_norm(ctx, {.x = p.x, .w = p.norm, .y = normed, .T = p.T, .N = p.K, .eps = p.norm_eps}));
    p.x = normed;
    p.norm = nullptr;
  }
  if (act8 && !stages) {
    DSV4_ASSIGN(p.act8, padded_input(ctx, scratch, p.x, p.T, p.K, Input::kAct8));
  }
  p.x_stride = groups * p.K;
  const bool ordered = grouped && is_fp4(p.jobs[0].product);
  if (raw && (ordered || p.K % kBlockK != 0)) {
    if (act8) return Status(Code::kUnsupported, cat("cuda: linear_stack of BF16 and quantised weights with K = ", p.K,
                                                    ": expected a multiple of ", kBlockK));
    DSV4_ASSIGN(p.x, padded_input(ctx, scratch, p.x, p.T * groups, p.K, ordered ? Input::kOrdered : Input::kAsIs));
    p.K = blocks * kBlockK;
    p.x_stride = groups * p.K;
  }
  if (p.T > p.few) DSV4_TRY(linear_many(ctx, p));
  if (p.n == 0) return {};
  unsigned grid = 0;
  for (int i = 0; i < p.n; ++i) {
    LinearJob& job = p.jobs[i];
    job.tiles_here = kWarps / job.own;
    while (p.rows_per_group / kTileRows % job.tiles_here != 0) job.tiles_here /= 2;
    job.first_block = static_cast<int32_t>(grid);
    const int needed = ceil_div(job.w.tiles(), job.tiles_here) * job.sharing;
    grid += static_cast<unsigned>(ceil_div(needed, p.cluster) * p.cluster);
  }
  if (p.n == kBoth && grid > kBlocksAtATime && p.T <= kFewTokens) {
    const bool fp8 = p.jobs[0].product == Product::kFp8 && p.jobs[1].product == Product::kFp8;
    const int bytes = kBoth * kSumBytes + with_norm * few_stride(ceil_div(blocks, p.jobs[0].split) * p.jobs[0].split);
    if (fp8 && bytes <= kSharedBytes) return run_both(ctx, p, bytes);
  }
  const int bytes = kSumBytes + (std::min(p.few, p.T) + (p.norm ? 1 : 0)) * few_stride(slice);
  DSV4_TRY(allow_shared(linear_kernel, bytes));
  const dim3 all(grid, static_cast<unsigned>(ceil_div(p.T, p.few)));
  return enqueue_clusters(ctx, "linear_kernel", linear_kernel, all, static_cast<unsigned>(p.cluster), kWarps * 32, static_cast<size_t>(bytes), p);
}

LinearJob make_job(const WeightView& w, void* y, DType dtype) {
  return {.w = matrix(w), .y = y, .first_block = 0, .split = 1, .tiles_here = 0, .sharing = 1, .own = 1, .product = Product::kBf16, .act8 = false, .y_f32 = dtype == DType::kF32};
}

}  // namespace

int split_k(int64_t tiles, int64_t blocks) {
  constexpr int64_t kEnoughWarps = 8 * kProcessors;  // half of what the chip holds
  int split = 1;
  while (split < kWarps && tiles * split < kEnoughWarps && split * 2 <= blocks) split *= 2;
  return split;
}

Status linear(OpContext& ctx, const LinearArgs& a) {
  DSV4_TRY(check_dtype("linear", "y", a.y_dtype, {DType::kBF16, DType::kF32}));
  LinearParams p{.n = 1, .T = static_cast<int32_t>(a.T), .K = static_cast<int32_t>(a.w.cols), .x = a.x};
  p.jobs[0] = make_job(a.w, a.y, a.y_dtype);
  return run(ctx, p, false, 1);
}

Status linear_stack(OpContext& ctx, const LinearStackArgs& a) {
  LinearParams p{.n = a.n, .T = static_cast<int32_t>(a.T), .K = static_cast<int32_t>(a.K), .x = a.x, .norm = a.norm,
                 .norm_eps = a.norm_eps};
  for (int32_t i = 0; i < a.n; ++i) {
    DSV4_TRY(check_dtype("linear_stack", "y", a.y_dtype[i], {DType::kBF16, DType::kF32}));
    p.jobs[i] = make_job(a.w[i], a.y[i], a.y_dtype[i]);
  }
  return run(ctx, p, false, 1);
}

Status grouped_linear(OpContext& ctx, const GroupedLinearArgs& a) {
  LinearParams p{.n = 1, .T = static_cast<int32_t>(a.T), .K = static_cast<int32_t>(a.w.cols), .x = a.x,
           .rows_per_group = static_cast<int32_t>(a.w.rows / a.G)};
  p.jobs[0] = make_job(a.w, a.y, DType::kBF16);
  return run(ctx, p, true, a.G);
}

}  // namespace dsv4::cuda
