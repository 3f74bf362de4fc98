// Residual streams: embedding, mHC, head mix; and RMSNorm.
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/quantise.cuh"
#include "backends/cuda/ops.h"
#include "backends/cuda/pack.h"
#include "base/str.h"

namespace dsv4::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTokens = 8;    // that share one reading of fn, where there are as many
constexpr int kMixThreads = 512, kAhead = 4;  // kAhead pairs of each stream per thread in flight
constexpr int kSlice = 512;   // of hc * D, one block each

// Sum over the first N threads of the block, the same in each; `shared` holds one float per warp.
template <int N>
__device__ float block_sum(float v, float* shared) {
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  asm volatile("bar.sync 1, %0;" ::"n"(N) : "memory");
  float sum = 0.0f;
  for (int w = 0; w < N / 32; ++w) sum += shared[w];
  return sum;
}

__device__ float2 unpack2(uint32_t w) { return {bits_to_float(w << 16), bits_to_float(w & 0xffff0000u)}; }
__device__ uint32_t pack2(float low, float high) {
  return static_cast<uint32_t>(to_bf16(low).bits) | static_cast<uint32_t>(to_bf16(high).bits) << 16;
}

__global__ void embed_kernel(const int32_t* tokens, const uint32_t* table, uint32_t* streams, int hc, int pairs) {
  wait_for_previous();
  const int64_t t = blockIdx.x;
  const uint32_t* row = table + static_cast<int64_t>(tokens[t]) * pairs;
  for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
    for (int j = 0; j < hc; ++j) streams[(t * hc + j) * pairs + i] = row[i];
  }
}

// partial[t][slice][row]: slices of x . fn_row for `mix` rows, then of x . x. N tokens share one reading
// of fn; the sums of a token are the same for every N.
template <int N>
__global__ void __launch_bounds__(kThreads) project_kernel(const bf16* streams, const int32_t* rows, const float* fn,
                                                           int T, int n, int mix, float* partial) {
  __shared__ float4 x[N][kSlice / 4];
  constexpr int kPerLane = kSlice / 128;  // float4 of a row per lane
  const int slice = blockIdx.x, first = blockIdx.y * N, begin = slice * kSlice, count = min(n - begin, kSlice);
  const int tokens = min(N, T - first);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // A warp's rows are warp, warp + 8, ...; the first is on its way before the streams are ready.
  const auto load = [&](int r, float4 (&w)[kPerLane]) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int at = (i * 32 + lane) * 4;
      w[i] = at < count ? *reinterpret_cast<const float4*>(fn + static_cast<int64_t>(r) * n + begin + at) : float4{0, 0, 0, 0};
    }
  };
  float4 next[kPerLane];
  if (warp < mix) load(warp, next);
  wait_for_previous();
  for (int i = threadIdx.x; i < N * (kSlice / 4); i += kThreads) {
    const int t = i / (kSlice / 4), at = i % (kSlice / 4) * 4;
    float4 v = {0, 0, 0, 0};
    if (t < tokens && at < count) {
      const int64_t row = rows ? rows[first + t] : first + t;
      const uint2 w = *reinterpret_cast<const uint2*>(streams + row * n + begin + at);
      const float2 a = unpack2(w.x), b = unpack2(w.y);
      v = {a.x, a.y, b.x, b.y};
    }
    x[t][at / 4] = v;
  }
  __syncthreads();
  for (int r = warp; r <= mix; r += kThreads / 32) {
    float4 w[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) w[i] = next[i];
    if (r + kThreads / 32 < mix) load(r + kThreads / 32, next);
#pragma unroll
    for (int t = 0; t < N; ++t) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const float4 v = x[t][i * 32 + lane];
        const float4 u = r < mix ? w[i] : v;
        sum = __fmaf_rn(u.x, v.x, __fmaf_rn(u.y, v.y, __fmaf_rn(u.z, v.z, __fmaf_rn(u.w, v.w, sum))));
      }
      sum = warp_sum(sum);
      if (lane == 0 && t < tokens) partial[(static_cast<int64_t>(first + t) * gridDim.x + slice) * (mix + 1) + r] = sum;
    }
  }
}

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct Mix {
  const bf16* streams;   // [rows, hc, D]
  const int32_t* rows;   // [T] or nullptr
  const float* partial;  // [T, slices, mix + 1]
  const float* base;     // [mix]
  const float* scale;    // [3], or [1] for the head
  const bf16* norm;      // [D], or nullptr: no norm
  bf16* x;               // [T, D]
  float* post;           // [T, hc], nullptr for the head
  float* comb;           // [T, hc, hc]
  float hc_eps, norm_eps;
  int32_t slices, mix, hc, D, iters;
};

// post and comb of one token by one warp.
__device__ void site_end(const Mix& p, int64_t t, const float* z) {
  const int hc = p.hc, lane = threadIdx.x % 32;
  if (lane < hc) p.post[t * hc + lane] = 2.0f * sigmoid(z[hc + lane] * p.scale[1] + p.base[hc + lane]);
  // Lane j * hc + l holds C[j][l]; sums over l and over j are butterflies.
  const int at = 2 * hc + lane % (hc * hc);
  float c = z[at] * p.scale[2] + p.base[at];
  const auto over_row = [&](float v) {
    for (int i = 1; i < hc; i *= 2) v += __shfl_xor_sync(~0u, v, i);
    return v;
  };
  const auto over_column = [&](float v) {
    for (int i = hc; i < hc * hc; i *= 2) v += __shfl_xor_sync(~0u, v, i);
    return v;
  };
  float top = c;
  for (int i = 1; i < hc; i *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
  c = expf(c - top);
  c = c / over_row(c) + p.hc_eps;
  c /= over_column(c) + p.hc_eps;
  // Within 2 ulp a step: what an iteration errs, the next one normalises again.
  for (int i = 1; i < p.iters; ++i) {
    c = __fdividef(c, over_row(c) + p.hc_eps);
    c = __fdividef(c, over_column(c) + p.hc_eps);
  }
  if (lane < hc * hc) p.comb[t * hc * hc + lane] = c;
}

// One block per token: weights from the projections, the mix, its norm; a warp of its own for Sinkhorn,
// whose result only the site's end needs.
__global__ void __launch_bounds__(kMixThreads + 32) mix_kernel(const Mix p) {
  wait_for_previous();
  __shared__ float z[32], pre[8], sums[16], shares[16][32];
  extern __shared__ float2 mixed[];
  const int64_t t = blockIdx.x;
  const int hc = p.hc, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // The streams' first pairs are on their way while the weights are made.
  const int pairs = p.D / 2;
  const int64_t row = p.rows ? p.rows[t] : t;
  const uint32_t* streams = reinterpret_cast<const uint32_t*>(p.streams) + row * hc * pairs;
  uint32_t ahead[kAhead][4];
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = threadIdx.x + k * kMixThreads;
      ahead[k][j] = j < hc && i < pairs && threadIdx.x < kMixThreads ? streams[j * pairs + i] : 0;
    }
  }
  if (warp < kMixThreads / 32) {
    float share = 0.0f;
    if (lane <= p.mix) {
      for (int s = warp; s < p.slices; s += kMixThreads / 32) share += p.partial[(t * p.slices + s) * (p.mix + 1) + lane];
    }
    shares[warp][lane] = share;
  }
  __syncthreads();
  if (warp == 0) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kMixThreads / 32; ++w) sum += shares[w][lane];
    const float squares = __shfl_sync(~0u, sum, p.mix);
    const float r = 1.0f / sqrtf(squares / static_cast<float>(hc * p.D) + p.norm_eps);
    z[lane] = sum * r;
    if (lane < hc) pre[lane] = sigmoid(sum * r * p.scale[0] + p.base[lane]) + p.hc_eps;
  }
  __syncthreads();
  if (warp == kMixThreads / 32) {
    if (p.post) site_end(p, t, z);
    return;
  }
  uint32_t* out = reinterpret_cast<uint32_t*>(p.x) + t * pairs;
  float squares = 0.0f;
  const auto mix = [&](int i, const uint32_t (&x)[4]) {
    float2 sum = {0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j >= hc) break;
      const float2 v = unpack2(x[j]);
      sum.x += pre[j] * v.x;
      sum.y += pre[j] * v.y;
    }
    const uint32_t rounded = pack2(sum.x, sum.y);
    if (!p.norm) {
      out[i] = rounded;
      return;
    }
    mixed[i] = unpack2(rounded);
    squares = __fmaf_rn(mixed[i].x, mixed[i].x, __fmaf_rn(mixed[i].y, mixed[i].y, squares));
  };
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    const int i = threadIdx.x + k * kMixThreads;
    if (i < pairs) mix(i, ahead[k]);
  }
  for (int i = threadIdx.x + kAhead * kMixThreads; i < pairs; i += kMixThreads) {
    uint32_t x[4] = {};
    for (int j = 0; j < hc; ++j) x[j] = streams[j * pairs + i];
    mix(i, x);
  }
  if (!p.norm) return;
  const float r = 1.0f / sqrtf(block_sum<kMixThreads>(squares, sums) / static_cast<float>(p.D) + p.norm_eps);
  for (int i = threadIdx.x; i < pairs; i += kMixThreads) {
    const float2 w = unpack2(reinterpret_cast<const uint32_t*>(p.norm)[i]);
    out[i] = pack2(mixed[i].x * r * w.x, mixed[i].y * r * w.y);
  }
}

template <int HC>
__global__ void hc_post_kernel(uint32_t* streams, const uint32_t* out, const float* post, const float* comb, int pairs) {
  wait_for_previous();
  const int64_t t = blockIdx.y;
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pairs) return;
  const float2 o = unpack2(out[t * pairs + i]);
  float2 x[HC];
  for (int j = 0; j < HC; ++j) x[j] = unpack2(streams[(t * HC + j) * pairs + i]);
  for (int l = 0; l < HC; ++l) {
    float2 mixed = {0.0f, 0.0f};
    for (int j = 0; j < HC; ++j) {
      const float c = comb[(t * HC + j) * HC + l];
      mixed.x += c * x[j].x;
      mixed.y += c * x[j].y;
    }
    const float p = post[t * HC + l];
    streams[(t * HC + l) * pairs + i] = pack2(p * o.x + mixed.x, p * o.y + mixed.y);
  }
}

__global__ void stream_add_kernel(const uint32_t* e, const uint32_t* h, uint32_t* streams, int hc, int pairs) {
  wait_for_previous();
  const int64_t row = blockIdx.y;  // token * hc + stream
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pairs) return;
  const float2 a = unpack2(e[row / hc * pairs + i]), b = unpack2(h[row * pairs + i]);
  streams[row * pairs + i] = pack2(a.x + b.x, a.y + b.y);
}

__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const uint32_t* x, const uint32_t* w, uint32_t* y, int pairs,
                                                            float eps) {
  wait_for_previous();
  __shared__ float sums[kThreads / 32];
  extern __shared__ float2 row[];
  const int64_t t = blockIdx.x;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < pairs; i += kThreads) {
    row[i] = unpack2(x[t * pairs + i]);
    squares = __fmaf_rn(row[i].x, row[i].x, __fmaf_rn(row[i].y, row[i].y, squares));
  }
  const float r = 1.0f / sqrtf(block_sum<kThreads>(squares, sums) / static_cast<float>(2 * pairs) + eps);
  for (int i = threadIdx.x; i < pairs; i += kThreads) {
    const float2 v = unpack2(w[i]);
    y[t * pairs + i] = pack2(row[i].x * r * v.x, row[i].y * r * v.y);
  }
}

const uint32_t* words(const bf16* p) { return reinterpret_cast<const uint32_t*>(p); }
uint32_t* words(bf16* p) { return reinterpret_cast<uint32_t*>(p); }

Status check_even(std::string_view op, int64_t n) {
  if (n % 2 == 0) return {};
  return Status(Code::kUnsupported, cat("cuda: ", op, ": ", n, " values in a row: expected an even number"));
}

Status run_mix(OpContext& ctx, Mix p, const float* fn, int64_t T) {
  if (T == 0) return {};
  if (p.D % 4 != 0) return Status(Code::kUnsupported, cat("cuda: hc: rows of ", p.D, " values: expected a multiple of 4"));
  if (p.hc != 1 && p.hc != 2 && p.hc != 4) {
    return Status(Code::kUnsupported, cat("cuda: ", p.hc, " residual streams: expected 1, 2 or 4"));
  }
  const int n = p.hc * p.D;
  p.slices = ceil_div(n, kSlice);
  Workspace::Scope scratch(ctx.workspace);
  DSV4_ASSIGN(float* partial, scratch.take<float>(T * p.slices * (p.mix + 1)));
  p.partial = partial;
  const int tokens = T < kTokens ? 1 : kTokens;
  const dim3 grid(static_cast<unsigned>(p.slices), static_cast<unsigned>(ceil_div<int64_t>(T, tokens)));
  DSV4_TRY(enqueue(ctx, "project_kernel", tokens == 1 ? project_kernel<1> : project_kernel<kTokens>, grid, kThreads, 0, p.streams, p.rows, fn, static_cast<int>(T), n, p.mix, partial));
  const int bytes = p.norm ? p.D * static_cast<int>(sizeof(float)) : 0;
  DSV4_TRY(allow_shared(mix_kernel, bytes));
  return enqueue(ctx, "mix_kernel", mix_kernel, static_cast<unsigned>(T), kMixThreads + 32, static_cast<size_t>(bytes), p);
}

Status run_pre(OpContext& ctx, const HcPreArgs& a, const bf16* norm) {
  const Mix p{.streams = a.streams, .base = a.mhc.base, .scale = a.mhc.scale, .norm = norm, .x = a.x, .post = a.post,
              .comb = a.comb, .hc_eps = a.mhc.hc_eps, .norm_eps = a.norm_eps,
              .mix = static_cast<int32_t>((2 + a.hc) * a.hc), .hc = static_cast<int32_t>(a.hc),
              .D = static_cast<int32_t>(a.D), .iters = a.mhc.sinkhorn_iters};
  return run_mix(ctx, p, a.mhc.fn, a.T);
}

unsigned pair_blocks(int64_t D) { return static_cast<unsigned>(ceil_div<int64_t>(D / 2, kThreads)); }

}  // namespace

Status embed(OpContext& ctx, const EmbedArgs& a) {
  if (a.T == 0) return {};
  DSV4_TRY(check_even("embed", a.D));
  return enqueue(ctx, "embed_kernel", embed_kernel, static_cast<unsigned>(a.T), kThreads, 0, a.tokens, reinterpret_cast<const uint32_t*>(matrix(a.table).codes), words(a.streams), static_cast<int>(a.hc), static_cast<int>(a.D / 2));
}

Status hc_pre(OpContext& ctx, const HcPreArgs& a) { return run_pre(ctx, a, nullptr); }
Status hc_pre_norm(OpContext& ctx, const HcPreNormArgs& a) { return run_pre(ctx, a.pre, a.norm); }

Status hc_head(OpContext& ctx, const HcHeadArgs& a) {
  const Mix p{.streams = a.streams, .rows = a.rows, .base = a.base, .scale = a.scale, .norm = a.norm, .x = a.x,
              .hc_eps = a.hc_eps, .norm_eps = a.norm_eps, .mix = static_cast<int32_t>(a.hc),
              .hc = static_cast<int32_t>(a.hc), .D = static_cast<int32_t>(a.D)};
  return run_mix(ctx, p, a.fn, a.R);
}

Status hc_post(OpContext& ctx, const HcPostArgs& a) {
  if (a.T == 0) return {};
  DSV4_TRY(check_even("hc_post", a.D));
  const dim3 grid(pair_blocks(a.D), static_cast<unsigned>(a.T));
  const int pairs = static_cast<int>(a.D / 2);
  switch (a.hc) {
    case 1: return enqueue(ctx, "hc_post_kernel", hc_post_kernel<1>, grid, kThreads, 0, words(a.streams), words(a.out), a.post, a.comb, pairs);
    case 2: return enqueue(ctx, "hc_post_kernel", hc_post_kernel<2>, grid, kThreads, 0, words(a.streams), words(a.out), a.post, a.comb, pairs);
    case 4: return enqueue(ctx, "hc_post_kernel", hc_post_kernel<4>, grid, kThreads, 0, words(a.streams), words(a.out), a.post, a.comb, pairs);
    default: return Status(Code::kUnsupported, cat("cuda: hc_post: ", a.hc, " residual streams: expected 1, 2 or 4"));
  }
}

Status stream_add(OpContext& ctx, const StreamAddArgs& a) {
  if (a.T == 0) return {};
  DSV4_TRY(check_even("stream_add", a.D));
  const dim3 grid(pair_blocks(a.D), static_cast<unsigned>(a.T * a.hc));
  return enqueue(ctx, "stream_add_kernel", stream_add_kernel, grid, kThreads, 0, words(a.e), words(a.h), words(a.streams), static_cast<int>(a.hc), static_cast<int>(a.D / 2));
}

Status rms_norm(OpContext& ctx, const RmsNormArgs& a) {
  if (a.T == 0) return {};
  DSV4_TRY(check_even("rms_norm", a.N));
  const int bytes = static_cast<int>(a.N * static_cast<int64_t>(sizeof(float)));
  DSV4_TRY(allow_shared(rms_norm_kernel, bytes));
  return enqueue(ctx, "rms_norm_kernel", rms_norm_kernel, static_cast<unsigned>(a.T), kThreads, static_cast<size_t>(bytes), words(a.x), words(a.w), words(a.y), static_cast<int>(a.N / 2), a.eps);
}

}  // namespace dsv4::cuda
