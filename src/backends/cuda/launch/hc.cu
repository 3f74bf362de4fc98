// mHC: post of one site, projections, mix and norm of the next, in one launch. Columns of D are cut into
// parts of 256; a block holds fn of its part (all streams) in shared memory, loaded while the kernel
// before still runs, and the blocks of one cluster, a token's whole D between them, exchange the sums.
// Every sum has one order, whatever the number of tokens.
#include <cooperative_groups.h>

#include <algorithm>

#include "backends/cuda/core.h"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/ops.h"
#include "base/str.h"

namespace dsv4::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kPart = 256;      // columns of D
constexpr int kWarps = 16;      // that work on columns
constexpr int kThreads = kWarps * 32 + 32;  // and one for Sinkhorn, whose result only the site's end needs
constexpr int kMixRow = 32;     // floats of a row of sums: mix rows of fn, then the squares
constexpr int kTokens = 8;      // that a cluster takes at once where there are many, half of it for wide blocks
constexpr int kFewTokens = 8;   // up to here one at a time, a cluster each
constexpr int kClusters = 8;    // that the chip holds at one time

struct Hc {
  bf16* streams;        // [rows, hc, D], changed where `out` is given
  const int32_t* rows;  // [T] or nullptr: 0, 1, ...
  const bf16* out;      // [T, D] of the sublayer before, or nullptr: no post
  const float* old_post;  // [T, hc]
  const float* old_comb;  // [T, hc, hc]
  const float* fn;      // [mix, hc * D]; nullptr: post alone
  const float* base;    // [mix]
  const float* scale;   // [3], or [1] for the head
  const bf16* norm;     // [D], or nullptr: no norm
  bf16* x;              // [T, D]
  float* post;          // [T, hc], nullptr for the head; may be old_post
  float* comb;          // [T, hc, hc]; may be old_comb
  float hc_eps, norm_eps;
  int32_t T, mix, D, iters, parts;  // parts of one block
};

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ float reciprocal(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

__device__ float4 unpack4(uint2 w) {
  const float2 a = unpack2(w.x), b = unpack2(w.y);
  return {a.x, a.y, b.x, b.y};
}

// Sums over the warp of N values, a power of two, each in the order of warp_sum: lane l has that of value
// l * N / 32.
template <int N>
__device__ float warp_sums(float (&v)[N]) {
  const int lane = threadIdx.x % 32;
  int o = 16;
#pragma unroll
  for (int n = N / 2; n; n /= 2, o /= 2) {
    const bool upper = lane & o;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float other = __shfl_xor_sync(~0u, upper ? v[i] : v[i + n], o);
      v[i] = (upper ? v[i + n] : v[i]) + other;
    }
  }
  float sum = v[0];
  for (; o; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
  return sum;
}

// A lane's factor and addend of post and comb.
template <int HC>
struct SiteEnd {
  float post_scale, post_base, comb_scale, comb_base;
  __device__ SiteEnd(const float* scale, const float* base)
      : post_scale(scale[1]), post_base(base[HC + threadIdx.x % HC]), comb_scale(scale[2]),
        comb_base(base[2 * HC + threadIdx.x % (HC * HC)]) {}
};

// post and comb of one token by one warp from its sums z, one a lane; every lane holds the whole matrix.
template <int HC>
__device__ void site_end(const Hc& p, int64_t t, float z, const SiteEnd<HC>& end) {
  const int lane = threadIdx.x % 32;
  const float post = __shfl_sync(~0u, z, HC + lane % HC);
  if (lane < HC) p.post[t * HC + lane] = 2.0f * sigmoid(post * end.post_scale + end.post_base);
  const float value = __shfl_sync(~0u, z, 2 * HC + lane % (HC * HC)) * end.comb_scale + end.comb_base;
  float top = value;
  for (int i = 1; i < HC; i *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
  const float e = expf(value - top);
  float c[HC][HC];
#pragma unroll
  for (int i = 0; i < HC * HC; ++i) c[i / HC][i % HC] = __shfl_sync(~0u, e, i);
  const auto sum = [](const float (&v)[HC]) {
    if constexpr (HC == 1) return v[0];
    if constexpr (HC == 2) return v[0] + v[1];
    if constexpr (HC == 4) return (v[0] + v[1]) + (v[2] + v[3]);
  };
  const auto columns = [&](auto&& factor) {
#pragma unroll
    for (int l = 0; l < HC; ++l) {
      float v[HC];
#pragma unroll
      for (int j = 0; j < HC; ++j) v[j] = c[j][l];
      const float f = factor(sum(v) + p.hc_eps);
#pragma unroll
      for (int j = 0; j < HC; ++j) c[j][l] *= f;
    }
  };
#pragma unroll
  for (int j = 0; j < HC; ++j) {
    const float total = sum(c[j]);
#pragma unroll
    for (int l = 0; l < HC; ++l) c[j][l] = c[j][l] / total + p.hc_eps;
  }
  // Within 2 ulp a step: what an iteration errs, the next one normalises again.
  columns(reciprocal);
  for (int i = 1; i < p.iters; ++i) {
#pragma unroll
    for (int j = 0; j < HC; ++j) {
      const float f = reciprocal(sum(c[j]) + p.hc_eps);
#pragma unroll
      for (int l = 0; l < HC; ++l) c[j][l] *= f;
    }
    columns(reciprocal);
  }
  float mine = c[0][0];
#pragma unroll
  for (int i = 1; i < HC * HC; ++i) mine = lane == i ? c[i / HC][i % HC] : mine;
  if (lane < HC * HC) p.comb[t * HC * HC + lane] = mine;
}

template <int HC>
__host__ __device__ constexpr int fn_floats(int mix, int parts) { return mix * HC * parts * kPart; }
template <int HC, int N>
constexpr int shared_bytes(int mix, int parts) {
  return (fn_floats<HC>(mix, parts) + N * parts * HC * kMixRow) * 4 + (N * HC + N + 1) * parts * kPart * 2;
}

// A pair of columns of every stream: X'_l = BF16(post_l * out + sum_j comb[j][l] X_j).
template <int HC>
__device__ void post_pair(const Hc& p, int64_t t, uint32_t out, uint32_t (&x)[HC]) {
  const float2 o = unpack2(out);
  float2 v[HC];
#pragma unroll
  for (int j = 0; j < HC; ++j) v[j] = unpack2(x[j]);
#pragma unroll
  for (int l = 0; l < HC; ++l) {
    float2 mixed = {0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < HC; ++j) {
      const float c = p.old_comb[(t * HC + j) * HC + l];
      mixed.x += c * v[j].x;
      mixed.y += c * v[j].y;
    }
    const float w = p.old_post[t * HC + l];
    x[l] = pack2(w * o.x + mixed.x, w * o.y + mixed.y);
  }
}

template <int HC>
__global__ void __launch_bounds__(256) hc_post_kernel(const Hc p) {
  wait_for_previous();
  const int64_t t = blockIdx.y;
  const int i = blockIdx.x * blockDim.x + threadIdx.x, pairs = p.D / 2;
  if (i >= pairs) return;
  uint32_t* streams = reinterpret_cast<uint32_t*>(p.streams) + t * HC * pairs + i;
  uint32_t x[HC];
  for (int j = 0; j < HC; ++j) x[j] = streams[j * pairs];
  post_pair<HC>(p, t, reinterpret_cast<const uint32_t*>(p.out)[t * pairs + i], x);
  for (int j = 0; j < HC; ++j) streams[j * pairs] = x[j];
}

template <int HC, int N>
__global__ void __launch_bounds__(kThreads, 1) hc_kernel(const __grid_constant__ Hc p) {
  extern __shared__ float4 shared[];
  __shared__ float pre[N][HC], shares[N][kWarps][32], z[N][32], base[32], scale[3];
  __shared__ float squares[N][2 * kPart / 64];
  const cg::cluster_group cluster = cg::this_cluster();
  const int columns = p.parts * kPart, slices = p.parts * HC, mix = p.mix;
  float* fn = reinterpret_cast<float*>(shared);                   // [mix][HC][columns]
  float* sums = fn + fn_floats<HC>(mix, p.parts);                 // [N][slices][kMixRow]
  bf16* xs = reinterpret_cast<bf16*>(sums + N * slices * kMixRow);  // [N][HC][columns]
  uint32_t* mixed = reinterpret_cast<uint32_t*>(xs + N * HC * columns);  // [N][columns / 2]
  uint32_t* norm = mixed + N * (columns / 2);                            // [columns / 2]
  const int rank = static_cast<int>(cluster.block_rank()), blocks = static_cast<int>(cluster.num_blocks());
  const int first_column = rank * columns, count = min(columns, p.D - first_column);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto sync_workers = [] { asm volatile("bar.sync 1, %0;" ::"n"(kWarps * 32) : "memory"); };

  if (warp < kWarps) {
    for (int i = threadIdx.x; i < mix * HC * (columns / 4); i += kWarps * 32) {
      const int row = i / (columns / 4), at = i % (columns / 4) * 4;  // row = r * HC + j
      float* to = fn + row * columns + at;
      if (at < count) copy_async_16(to, p.fn + static_cast<int64_t>(row) * p.D + first_column + at);
      else *reinterpret_cast<float4*>(to) = float4{0, 0, 0, 0};
    }
  }
  copy_async_commit();
  const int half = columns / 2, pairs = p.D / 2;
  for (int i = threadIdx.x; p.norm && i < count / 2; i += kThreads) {
    norm[i] = reinterpret_cast<const uint32_t*>(p.norm)[first_column / 2 + i];
  }
  if (threadIdx.x < mix) base[threadIdx.x] = p.base[threadIdx.x];
  if (threadIdx.x < (p.post ? 3 : 1)) scale[threadIdx.x] = p.scale[threadIdx.x];
  wait_for_previous();

  for (int64_t first = static_cast<int64_t>(blockIdx.x / blocks) * N; first < p.T;
       first += static_cast<int64_t>(gridDim.x / blocks) * N) {
    const int tokens = min(N, static_cast<int>(p.T - first));
    if (warp < kWarps) {
      for (int i = threadIdx.x; i < N * half; i += kWarps * 32) {
        const int local = i / half, at = i % half;
        uint32_t x[HC] = {};
        if (local < tokens && 2 * at < count) {
          const int64_t t = first + local, row = p.rows ? p.rows[t] : t;
          const uint32_t* streams = reinterpret_cast<const uint32_t*>(p.streams) + row * HC * pairs + first_column / 2 + at;
#pragma unroll
          for (int j = 0; j < HC; ++j) x[j] = streams[j * pairs];
          if (p.out) post_pair<HC>(p, t, reinterpret_cast<const uint32_t*>(p.out)[t * pairs + first_column / 2 + at], x);
        }
#pragma unroll
        for (int j = 0; j < HC; ++j) reinterpret_cast<uint32_t*>(xs)[(local * HC + j) * half + at] = x[j];
      }
      copy_async_wait<0>();
      sync_workers();
      // A warp takes one stream and every (16 / HC)-th row of fn.
      const int j = warp % HC;
      for (int part = 0; part < p.parts; ++part) {
        float4 x[N][2];
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            x[n][i] = unpack4(*reinterpret_cast<const uint2*>(xs + (n * HC + j) * columns + part * kPart + (i * 32 + lane) * 4));
          }
        }
        for (int r = warp / HC; r <= mix; r += kWarps / HC) {
          float4 w[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (r < mix) w[i] = *reinterpret_cast<const float4*>(fn + (r * HC + j) * columns + part * kPart + (i * 32 + lane) * 4);
          }
          float sum[N];
#pragma unroll
          for (int n = 0; n < N; ++n) {
            sum[n] = 0.0f;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const float4 v = x[n][i], u = r < mix ? w[i] : v;
              sum[n] = __fmaf_rn(u.x, v.x, __fmaf_rn(u.y, v.y, __fmaf_rn(u.z, v.z, __fmaf_rn(u.w, v.w, sum[n]))));
            }
          }
          const float total = warp_sums<N>(sum);
          if (lane % (32 / N) == 0) sums[((lane * N / 32) * slices + part * HC + j) * kMixRow + r] = total;
        }
      }
    }
    cluster.sync();
    // Slices in order: warp w adds w, w + 16, ..., then the warps' shares are added.
    if (warp < kWarps) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        float share = 0.0f;
        if (lane <= mix) {
#pragma unroll 4
          for (int s = warp; s < slices * blocks; s += kWarps) {
            share += cluster.map_shared_rank(sums, s / slices)[(n * slices + s % slices) * kMixRow + lane];
          }
        }
        shares[n][warp][lane] = share;
      }
    }
    __syncthreads();
    const auto project = [&](int n) {
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += shares[n][w][lane];
      const float all = __shfl_sync(~0u, sum, mix);
      return sum * (1.0f / sqrtf(all / static_cast<float>(HC * p.D) + p.norm_eps));
    };
    if (warp == kWarps) {
      // The others need not wait for Sinkhorn; all that it reads of theirs is read before.
      const SiteEnd<HC> end(scale, base);
      if (p.post) {
        for (int n = rank; n < tokens; n += blocks) z[n][lane] = project(n);
      }
      __syncwarp();
      asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
      if (p.post) {
        for (int n = rank; n < tokens; n += blocks) site_end<HC>(p, first + n, z[n][lane], end);
      }
      __syncwarp();
      asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
      continue;
    }
    if (warp < N) {
      const float value = project(warp);
      if (lane < HC) pre[warp][lane] = sigmoid(value * scale[0] + base[lane]) + p.hc_eps;
    }
    sync_workers();
    // A warp's 32 pairs are of one token, and always the same: the sum of their squares is one term.
    for (int i = threadIdx.x; i < N * half; i += kWarps * 32) {
      const int local = i / half, at = i % half;
      float2 sum = {0.0f, 0.0f};
#pragma unroll
      for (int j = 0; j < HC; ++j) {
        const float2 v = unpack2(reinterpret_cast<const uint32_t*>(xs)[(local * HC + j) * half + at]);
        sum.x += pre[local][j] * v.x;
        sum.y += pre[local][j] * v.y;
      }
      const uint32_t rounded = pack2(sum.x, sum.y);
      if (!p.norm) {
        if (local < tokens && 2 * at < count) reinterpret_cast<uint32_t*>(p.x)[(first + local) * pairs + first_column / 2 + at] = rounded;
        continue;
      }
      mixed[i] = rounded;
      const float2 v = unpack2(rounded);
      const float square = warp_sum(__fmaf_rn(v.x, v.x, v.y * v.y));
      if (lane == 0) squares[local][at / 32] = square;
    }
    cluster.sync();  // whose end also says that all sums were read
    // The new streams go to memory only now: a barrier of the cluster waits for what was stored before.
    for (int i = threadIdx.x; p.out && i < N * half; i += kWarps * 32) {
      const int local = i / half, at = i % half;
      if (local >= tokens || 2 * at >= count) continue;
      uint32_t* streams = reinterpret_cast<uint32_t*>(p.streams) + (first + local) * HC * pairs + first_column / 2 + at;
#pragma unroll
      for (int j = 0; j < HC; ++j) streams[j * pairs] = reinterpret_cast<const uint32_t*>(xs)[(local * HC + j) * half + at];
    }
    if (!p.norm) continue;
    for (int i = threadIdx.x; i < N * half; i += kWarps * 32) {
      const int local = i / half, at = i % half, terms = half / 32;
      float sum = 0.0f;
      for (int s = lane; s < terms * blocks; s += 32) sum += cluster.map_shared_rank(&squares[local][0], s / terms)[s % terms];
      const float r = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(p.D) + p.norm_eps);
      if (local >= tokens || 2 * at >= count) continue;
      const int64_t column = first_column / 2 + at;
      const float2 w = unpack2(norm[at]), v = unpack2(mixed[i]);
      reinterpret_cast<uint32_t*>(p.x)[(first + local) * pairs + column] = pack2(v.x * r * w.x, v.y * r * w.y);
    }
  }
  cluster.sync();  // nobody leaves while others read its sums
}

template <int HC, int N>
Status launch(OpContext& ctx, const Hc& p, unsigned blocks) {
  const int bytes = shared_bytes<HC, N>(p.mix, p.parts);
  const unsigned clusters = std::min<unsigned>(kClusters, static_cast<unsigned>(ceil_div(p.T, N)));
  DSV4_TRY(allow_shared(hc_kernel<HC, N>, bytes));
  DSV4_TRY(allow_clusters(hc_kernel<HC, N>));
  return enqueue_clusters(ctx, "hc_kernel", hc_kernel<HC, N>, dim3(clusters * blocks), blocks, kThreads,
                          static_cast<size_t>(bytes), p);
}

template <int HC>
Status run_streams(OpContext& ctx, Hc p) {
  if (!p.fn) {
    const dim3 grid(static_cast<unsigned>(ceil_div(p.D / 2, 256)), static_cast<unsigned>(p.T));
    return enqueue(ctx, "hc_post_kernel", hc_post_kernel<HC>, grid, 256, 0, p);
  }
  const int parts = ceil_div(p.D, kPart);
  p.parts = ceil_div(parts, static_cast<int>(kMaxCluster));
  const unsigned blocks = static_cast<unsigned>(ceil_div(parts, p.parts));
  if (p.T <= kFewTokens) return launch<HC, 1>(ctx, p, blocks);
  return p.parts == 1 ? launch<HC, kTokens>(ctx, p, blocks) : launch<HC, kTokens / 2>(ctx, p, blocks);
}

Status run(OpContext& ctx, const Hc& p, int64_t hc) {
  static_assert(shared_bytes<4, kTokens / 2>(24, 2) <= kMaxSharedBytes - 10 * 1024);
  static_assert(shared_bytes<4, kTokens>(24, 1) <= kMaxSharedBytes - 20 * 1024);
  constexpr int kMostColumns = 2 * static_cast<int>(kMaxCluster) * kPart;
  if (p.T == 0) return {};
  if (p.D % 4 != 0 || p.D > kMostColumns) {
    return Status(Code::kUnsupported, cat("cuda: hc: rows of ", p.D, " values: expected a multiple of 4 up to ", kMostColumns));
  }
  switch (hc) {
    case 1: return run_streams<1>(ctx, p);
    case 2: return run_streams<2>(ctx, p);
    case 4: return run_streams<4>(ctx, p);
    default: return Status(Code::kUnsupported, cat("cuda: ", hc, " residual streams: expected 1, 2 or 4"));
  }
}

Hc pre_params(const HcPreArgs& a, const bf16* norm) {
  // Streams are written only after a post.
  return {.streams = const_cast<bf16*>(a.streams), .fn = a.mhc.fn, .base = a.mhc.base, .scale = a.mhc.scale, .norm = norm,
          .x = a.x, .post = a.post, .comb = a.comb, .hc_eps = a.mhc.hc_eps, .norm_eps = a.norm_eps,
          .T = static_cast<int32_t>(a.T), .mix = static_cast<int32_t>((2 + a.hc) * a.hc), .D = static_cast<int32_t>(a.D),
          .iters = a.mhc.sinkhorn_iters};
}

}  // namespace

Status hc_pre(OpContext& ctx, const HcPreArgs& a) { return run(ctx, pre_params(a, nullptr), a.hc); }
Status hc_pre_norm(OpContext& ctx, const HcPreNormArgs& a) { return run(ctx, pre_params(a.pre, a.norm), a.pre.hc); }

Status hc_post(OpContext& ctx, const HcPostArgs& a) {
  return run(ctx, {.streams = a.streams, .out = a.out, .old_post = a.post, .old_comb = a.comb,
                   .T = static_cast<int32_t>(a.T), .D = static_cast<int32_t>(a.D)}, a.hc);
}

Status hc_post_pre_norm(OpContext& ctx, const HcPostPreNormArgs& a) {
  Hc p = pre_params(a.next.pre, a.next.norm);
  p.streams = a.post.streams;
  p.out = a.post.out;
  p.old_post = a.post.post;
  p.old_comb = a.post.comb;
  return run(ctx, p, a.post.hc);
}

Status hc_head(OpContext& ctx, const HcHeadArgs& a) {
  return run(ctx, {.streams = const_cast<bf16*>(a.streams), .rows = a.rows, .fn = a.fn, .base = a.base, .scale = a.scale,
                   .norm = a.norm, .x = a.x, .hc_eps = a.hc_eps, .norm_eps = a.norm_eps,
                   .T = static_cast<int32_t>(a.R), .mix = static_cast<int32_t>(a.hc), .D = static_cast<int32_t>(a.D)},
             a.hc);
}

}  // namespace dsv4::cuda
