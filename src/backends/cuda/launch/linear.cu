// linear, linear_stack, grouped_linear: several matrices over one input in one launch.
#include "backends/cuda/launch/linear.h"

#include <algorithm>

#include "backends/cuda/device/multiply.cuh"
#include "backends/cuda/device/quantise.cuh"
#include "backends/cuda/ops.h"
#include "base/str.h"
#include "ops/check.h"

namespace dsv4::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kFewTokens = 32;
constexpr int kPrefetchBytes = 8 * 1024;   // of a warp's weights
constexpr int kStagedBytes = 40 * 1024;    // quantised input that a block makes for itself

template <Product P, int NT>
__device__ void run_job(const LinearParams& p, const LinearJob& job, const Input<NT>& act8, int tile, int part, int first_token,
                        float (&total)[1][NT][4]) {
  const Tile tiles[1] = {tile_of<P>(job.w, tile)};
  if constexpr (takes_act8(P)) {
    multiply<P, 1, NT>(tiles, job.w.blocks(), part, job.split, act8, total);
  } else {
    const int g = threadIdx.x % 32 / 4;
    const int group = p.rows_per_group ? tile * kTileRows / p.rows_per_group : 0;
    Input<NT> in{};
    in.x = reinterpret_cast<const char*>(p.x + first_token * p.x_stride + static_cast<int64_t>(group) * p.K);
    for (int n = 0; n < NT; ++n) {
      in.row[n] = first_token + n * 8 + g < p.T ? static_cast<uint32_t>((n * 8 + g) * p.x_stride * 2) : kAbsent;
    }
    multiply<P, 1, NT>(tiles, job.w.blocks(), part, job.split, in, total);
  }
}

// 1 / root mean square of up to 8 rows, with the sums of rms_norm. `sums` [8][kWarps].
__device__ void inverse_rms(const LinearParams& p, float (*sums)[kWarps], float* inverse) {
  for (int t = 0; t < p.T; ++t) {
    const uint32_t* row = reinterpret_cast<const uint32_t*>(p.x + t * p.x_stride);
    float squares = 0.0f;
    for (int i = threadIdx.x; i < p.K / 2; i += kWarps * 32) {
      const float low = bits_to_float(row[i] << 16), high = bits_to_float(row[i] & 0xffff0000u);
      squares = __fmaf_rn(low, low, __fmaf_rn(high, high, squares));
    }
    squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) sums[t][threadIdx.x / 32] = squares;
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < p.T) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += sums[threadIdx.x][w];
    inverse[threadIdx.x] = 1.0f / sqrtf(sum / static_cast<float>(p.K) + p.norm_eps);
  }
  __syncthreads();
}

template <int NT>
__global__ void __launch_bounds__(kWarps * 32, NT == 1 ? 2 : 1) linear_kernel(const __grid_constant__ LinearParams p) {
  extern __shared__ uint4 shared[];
  __shared__ float norm_sums[8][kWarps], inverse[8];
  int j = 0;
  while (j + 1 < p.n && static_cast<int>(blockIdx.x) >= p.jobs[j + 1].first_block) ++j;
  const LinearJob& job = p.jobs[j];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int first_token = blockIdx.y * NT * 8;
  const int blocks = (p.K + kBlockK - 1) / kBlockK, stride = blocks * kBlockK;
  const int tiles_here = kWarps / job.split;
  const int first_tile = (blockIdx.x - job.first_block) * tiles_here;
  // Weights do not depend on the kernels before: the first are on their way while those still run. All
  // blocks of a grid together ask for less than L2 holds.
  if (blockIdx.y == 0 && warp % job.split == 0 && lane == 0 && first_tile + warp / job.split < job.w.tiles()) {
    const int64_t bytes = static_cast<int64_t>(job.w.blocks()) * block_code_bytes(job.w.format);
    prefetch_l2(job.w.codes + (first_tile + warp / job.split) * bytes,
                static_cast<uint32_t>(min(bytes, int64_t{kPrefetchBytes} * job.split)));
  }
  wait_for_previous();

  Input<NT> act8{};
  if (takes_act8(job.product)) {
    int row = stride;
    if (p.codes) {
      act8.x = reinterpret_cast<const char*>(p.codes);
      act8.scales = p.scales;
    } else {
      // Rows 64 bytes apart modulo 128: two tokens' loads meet different banks.
      row = stride + 64;
      char* codes = reinterpret_cast<char*>(shared);
      float* scales = reinterpret_cast<float*>(codes + p.T * row);
      if (p.norm) inverse_rms(p, norm_sums, inverse);
      constexpr int kAhead = 4;  // groups whose loads are in flight together
      for (int first = warp; first < p.T * blocks; first += kAhead * kWarps) {
        float v[kAhead][4];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          const int at = min(first + i * kWarps, p.T * blocks - 1);
          load_group(p.x + at / blocks * p.x_stride, p.K, at % blocks, v[i]);
          if (p.norm) {
            float w[4];
            load_group(p.norm, p.K, at % blocks, w);
            for (int e = 0; e < 4; ++e) v[i][e] = round_bf16(v[i][e] * inverse[at / blocks] * w[e]);
          }
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          const int at = first + i * kWarps;
          if (at >= p.T * blocks) break;
          uint8_t* out = reinterpret_cast<uint8_t*>(codes + at / blocks * row) + at % blocks * kBlockK;
          const float scale = quantise_group(v[i], out);
          if (lane == 0) scales[at] = scale;
        }
      }
      __syncthreads();
      act8.x = codes;
      act8.scales = scales;
    }
    for (int n = 0; n < NT; ++n) {
      const int token = first_token + n * 8;
      act8.row[n] = token + g < p.T ? static_cast<uint32_t>((token + g) * row) : kAbsent;
      for (int c = 0; c < 2; ++c) {
        act8.scale_row[n][c] = token + 2 * t + c < p.T ? static_cast<uint32_t>((token + 2 * t + c) * blocks) : 0;
      }
    }
  }

  float total[1][NT][4] = {};
  const int tile = first_tile + warp / job.split, part = warp % job.split;
  if (tile < job.w.tiles()) {
    switch (job.product) {
      case Product::kBf16: run_job<Product::kBf16, NT>(p, job, act8, tile, part, first_token, total); break;
      case Product::kFp8: run_job<Product::kFp8, NT>(p, job, act8, tile, part, first_token, total); break;
      case Product::kFp8Bf16: run_job<Product::kFp8Bf16, NT>(p, job, act8, tile, part, first_token, total); break;
      case Product::kMxfp4: run_job<Product::kMxfp4, NT>(p, job, act8, tile, part, first_token, total); break;
      case Product::kNvfp4: run_job<Product::kNvfp4, NT>(p, job, act8, tile, part, first_token, total); break;
    }
  }

  // Shares of K in order of the warps; neighbouring threads write neighbouring rows of one token.
  float* sums = reinterpret_cast<float*>(reinterpret_cast<char*>(shared) + p.staged_bytes);
  float* mine = sums + warp * (NT * 8 * kTileRows);
  for (int n = 0; n < NT; ++n) {
    for (int i = 0; i < 4; ++i) mine[(n * 8 + 2 * t + i % 2) * kTileRows + g + i / 2 * 8] = total[0][n][i];
  }
  __syncthreads();
  const int tokens = min(NT * 8, p.T - first_token);
  for (int i = threadIdx.x; i < tiles_here * tokens * kTileRows; i += kWarps * 32) {
    const int r = i % kTileRows, local = i / kTileRows % tiles_here, token = i / kTileRows / tiles_here;
    const int row = (first_tile + local) * kTileRows + r;
    if (row >= job.w.rows) continue;
    float sum = 0.0f;
    for (int w = local * job.split; w < (local + 1) * job.split; ++w) {
      sum += sums[(w * NT * 8 + token) * kTileRows + r];
    }
    sum *= job.w.global_scale;
    const int64_t at = static_cast<int64_t>(first_token + token) * job.w.rows + row;
    if (job.y_f32) static_cast<float*>(job.y)[at] = sum;
    else static_cast<bf16*>(job.y)[at] = to_bf16(sum);
  }
}

// One warp per group of 128.
__global__ void quantise_kernel(const bf16* x, int rows, int cols, uint8_t* codes, float* scales) {
  wait_for_previous();
  const int blocks = (cols + kBlockK - 1) / kBlockK;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (i >= static_cast<int64_t>(rows) * blocks) return;
  float v[4];
  load_group(x + i / blocks * cols, cols, static_cast<int>(i % blocks), v);
  const float scale = quantise_group(v, codes + i * kBlockK);
  if (threadIdx.x % 32 == 0) scales[i] = scale;
}

// Rows of a ragged K, padded with zeros to whole blocks.
__global__ void pad_kernel(const bf16* x, int64_t rows, int cols, int padded, bf16* out) {
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= rows * padded) return;
  const int k = static_cast<int>(i % padded);
  out[i] = k < cols ? x[i / padded * cols + k] : bf16{0};
}

Product product_of(WeightFormat format, bool grouped) {
  switch (format) {
    case WeightFormat::kFp8Tile128: return grouped ? Product::kFp8Bf16 : Product::kFp8;
    case WeightFormat::kMxfp4: return Product::kMxfp4;
    case WeightFormat::kNvfp4: return Product::kNvfp4;
    default: return Product::kBf16;
  }
}

template <int NT>
Status launch(OpContext& ctx, const LinearParams& p, unsigned grid) {
  const int bytes = p.staged_bytes + kWarps * NT * 8 * kTileRows * static_cast<int>(sizeof(float));
  DSV4_TRY(allow_shared(linear_kernel<NT>, bytes));
  const dim3 blocks(grid, static_cast<unsigned>(ceil_div(p.T, NT * 8)));
  return enqueue(ctx, "linear_kernel", linear_kernel<NT>, blocks, kWarps * 32, static_cast<size_t>(bytes), p);
}

// The rows of a grouped input hold `groups` slices of K and stay BF16.
Status run(OpContext& ctx, LinearParams p, bool grouped, int64_t groups) {
  if (p.T == 0) return {};
  Workspace::Scope scratch(ctx.workspace);
  bool act8 = false, raw = false;
  for (int i = 0; i < p.n; ++i) {
    LinearJob& job = p.jobs[i];
    DSV4_TRY(check_dim("linear", "K of the weight", p.K, job.w.cols));
    job.product = product_of(job.w.format, grouped);
    job.split = split_k(job.w.tiles(), job.w.blocks());
    (takes_act8(job.product) ? act8 : raw) = true;
  }
  const int blocks = ceil_div(p.K, kBlockK);
  const int staged = p.T * (blocks * (kBlockK + 4) + 64);
  const bool stages = act8 && p.T <= 8 && staged <= kStagedBytes;
  if (p.norm && (!stages || raw || p.K % 2 != 0)) {
    DSV4_ASSIGN(bf16* normed, scratch.take<bf16>(static_cast<int64_t>(p.T) * p.K));
    DSV4_TRY(rms_norm(ctx, {.x = p.x, .w = p.norm, .y = normed, .T = p.T, .N = p.K, .eps = p.norm_eps}));
    p.x = normed;
    p.norm = nullptr;
  }
  if (act8) {
    if (stages) {
      p.staged_bytes = ceil_div(staged, 16) * 16;
    } else {
      DSV4_ASSIGN(const Quantised q, quantise(ctx, scratch, p.x, p.T, p.K));
      p.codes = q.codes;
      p.scales = q.scales;
    }
  }
  p.x_stride = groups * p.K;
  if (raw && p.K % kBlockK != 0) {
    if (act8) return Status(Code::kUnsupported, cat("cuda: linear_stack of BF16 and quantised weights with K = ", p.K,
                                                    ": expected a multiple of ", kBlockK));
    const int padded = blocks * kBlockK;
    const int64_t rows = p.T * groups;
    DSV4_ASSIGN(bf16* x, scratch.take<bf16>(rows * padded));
    DSV4_TRY(enqueue(ctx, "pad_kernel", pad_kernel, static_cast<unsigned>(ceil_div<int64_t>(rows * padded, 256)), 256, 0, p.x, rows, p.K, padded, x));
    p.x = x;
    p.K = padded;
    p.x_stride = groups * padded;
  }
  if (p.T > kFewTokens) DSV4_TRY(linear_many(ctx, p));
  if (p.n == 0) return {};
  unsigned grid = 0;
  for (int i = 0; i < p.n; ++i) {
    p.jobs[i].first_block = static_cast<int32_t>(grid);
    grid += static_cast<unsigned>(ceil_div(p.jobs[i].w.tiles(), kWarps / p.jobs[i].split));
  }
  if (p.T <= 8) return launch<1>(ctx, p, grid);
  if (p.T <= 16) return launch<2>(ctx, p, grid);
  if (p.T <= 32) return launch<4>(ctx, p, grid);
  return launch<8>(ctx, p, grid);
}

LinearJob make_job(const WeightView& w, void* y, DType dtype) {
  return {.w = matrix(w), .y = y, .first_block = 0, .split = 1, .side_by_side = 1, .product = Product::kBf16, .y_f32 = dtype == DType::kF32};
}

}  // namespace

int split_k(int64_t tiles, int64_t blocks) {
  constexpr int64_t kEnoughWarps = 8 * 132;  // half of what the chip holds
  int split = 1;
  while (split < kWarps && tiles * split < kEnoughWarps && split * 2 <= blocks) split *= 2;
  return split;
}

Result<Quantised> quantise(OpContext& ctx, Workspace::Scope& scratch, const bf16* x, int64_t rows, int64_t cols) {
  const int64_t blocks = ceil_div<int64_t>(cols, kBlockK);
  Quantised q;
  DSV4_ASSIGN(q.codes, scratch.take<uint8_t>(rows * blocks * kBlockK));
  DSV4_ASSIGN(q.scales, scratch.take<float>(rows * blocks));
  DSV4_TRY(enqueue(ctx, "quantise_kernel", quantise_kernel, static_cast<unsigned>(ceil_div<int64_t>(rows * blocks, 8)), 256, 0, x, static_cast<int>(rows), static_cast<int>(cols), q.codes, q.scales));
  return q;
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
