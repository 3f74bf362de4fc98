// mHC: post of one site, projections, mix and norm of the next, in one launch for one token. Columns of D are cut
// into parts of 256, a block takes one or two. A warp holds eight rows of fn for one stream of its part, loaded while
// the kernel before still runs; the blocks of one cluster, a token's whole D between them, exchange the sums.
// Many tokens: hc_many.cu.
#include "backends/cuda/launch/hc.h"

#include <cooperative_groups.h>

#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/ops.h"
#include "base/str.h"

namespace dsv4::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = kShares * 32;
constexpr int kSinkhorn = kShares - 1;  // warp that does Sinkhorn, whose result only the site's end needs
constexpr int kFewTokens = 1;           // up to here a cluster for each

template <int HC>
__device__ void comb_column(const float* comb, int l, float (&column)[HC]) {
#pragma unroll
  for (int j = 0; j < HC; ++j) column[j] = comb[j * HC + l];
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
  const uint32_t out = reinterpret_cast<const uint32_t*>(p.out)[t * pairs + i];
#pragma unroll
  for (int l = 0; l < HC; ++l) {
    float comb[HC];
    comb_column<HC>(p.old_comb + t * HC * HC, l, comb);
    streams[l * pairs] = post_pair<HC>(p.old_post[t * HC + l], comb, out, x);
  }
}

// Stream j of a token after post: a lane's 8 columns of a part.
template <int HC>
__device__ void load_stream(const Hc& p, int64_t t, int j, int first_column, int count, uint2 (&x)[2]) {
  const int64_t row = p.rows ? p.rows[t] : t;
  float comb[HC] = {}, post = 0.0f;
  if (p.out) {
    comb_column<HC>(p.old_comb + t * HC * HC, j, comb);
    post = p.old_post[t * HC + j];
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = (i * 32 + static_cast<int>(threadIdx.x % 32)) * 4;
    x[i] = {0, 0};
    if (at >= count) continue;
    const bf16* streams = p.streams + row * HC * p.D + first_column + at;
    if (!p.out) {
      x[i] = *reinterpret_cast<const uint2*>(streams + j * p.D);
      continue;
    }
    uint32_t low[HC], high[HC];
#pragma unroll
    for (int l = 0; l < HC; ++l) {
      const uint2 w = *reinterpret_cast<const uint2*>(streams + l * p.D);
      low[l] = w.x;
      high[l] = w.y;
    }
    const uint2 out = *reinterpret_cast<const uint2*>(p.out + t * p.D + first_column + at);
    x[i] = {post_pair<HC>(post, comb, out.x, low), post_pair<HC>(post, comb, out.y, high)};
  }
}

template <int HC, int PARTS>
__global__ void __launch_bounds__(kThreads, 1) hc_kernel(const __grid_constant__ Hc p) {
  constexpr int kColumns = PARTS * kPart, kPairs = kColumns / 2, kSlices = PARTS * HC, kTerms = kPairs / 32;
  static_assert(kPairs / 32 <= kSinkhorn && kHcWarps <= kSinkhorn);
  extern __shared__ float4 shared[];  // [mix][HC][kPart]: fn of the second part
  __shared__ float sums[kSlices][kMixRow], shares[kShares][32], squares[kTerms];
  __shared__ uint2 xs[HC][kColumns / 4];
  const cg::cluster_group cluster = cg::this_cluster();
  const int rank = static_cast<int>(cluster.block_rank()), blocks = static_cast<int>(cluster.num_blocks());
  const int first_column = rank * kColumns, count = min(kColumns, p.D - first_column);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t t = blockIdx.x / blocks;
  const float* second_fn = reinterpret_cast<const float*>(shared);

  // A warp's stream and rows of fn, if it has any.
  const int j = warp % HC, first_row = warp / HC * kFnRows;
  const bool holds = first_row < p.mix;
  HeldRows fn;
  if (holds) fn.load<HC>(p, first_row, j, first_column, count);
  if constexpr (PARTS == 2) {
    for (int i = threadIdx.x; i < p.mix * HC * (kPart / 4); i += blockDim.x) {
      const int row = i / (kPart / 4), at = kPart + i % (kPart / 4) * 4;  // row = r * HC + j
      if (at < count) copy_async_16(shared + i, p.fn + row * p.D + first_column + at);
      else shared[i] = {0, 0, 0, 0};
    }
    copy_async_commit();
  }
  const int pair = threadIdx.x;  // of the mix
  const bool has_pair = pair < kPairs && 2 * pair < count;
  const uint32_t norm = p.norm && has_pair ? reinterpret_cast<const uint32_t*>(p.norm)[first_column / 2 + pair] : 0;
  const float pre_scale = p.scale[0], pre_base = p.base[lane % HC];
  SiteEnd site;
  if (warp == kSinkhorn && p.post) site.load<HC>(p);
  wait_for_previous();

  uint2 x[PARTS][2];
  if (holds) {
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      load_stream<HC>(p, t, j, first_column + part * kPart, count - part * kPart, x[part]);
    }
  }
  if constexpr (PARTS == 2) {
    copy_async_wait<0>();
    __syncthreads();
  }
#pragma unroll
  for (int part = 0; holds && part < PARTS; ++part) {
    const float4 v[2] = {unpack4(x[part][0]), unpack4(x[part][1])};
    float dots[kFnRows];
#pragma unroll
    for (int r = 0; r < kFnRows; ++r) {
      if (part == 0) {
        dots[r] = lane_dot(fn.w[r], v);
        continue;
      }
      const int row = first_row + fn.row_of(r);
      float4 w[2] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (row < p.mix) w[i] = *reinterpret_cast<const float4*>(second_fn + (row * HC + j) * kPart + (i * 32 + lane) * 4);
      }
      dots[r] = lane_dot(w, v);
    }
    const float sum = warp_sums<kFnRows>(dots);
    constexpr int kLanes = 32 / kFnRows;
    const int row = first_row + lane / kLanes;
    if (lane % kLanes == 0 && row < p.mix) sums[part * HC + j][row] = sum;
    if (first_row > 0) continue;
    const float square = warp_sum(lane_dot(v, v));
    if (lane == 0) sums[part * HC + j][p.mix] = square;
#pragma unroll
    for (int i = 0; i < 2; ++i) xs[j][part * (kPart / 4) + i * 32 + lane] = x[part][i];
  }
  cluster.sync();
  float share = 0.0f;
  if (lane <= p.mix) {
#pragma unroll 4
    for (int s = warp; s < kSlices * blocks; s += kShares) {
      share += cluster.map_shared_rank(&sums[0][0], s / kSlices)[s % kSlices * kMixRow + lane];
    }
  }
  shares[warp][lane] = share;
  __syncthreads();
  if (warp == kSinkhorn) {
    // The others need not wait for Sinkhorn; all that it reads of shared memory is read before.
    const float z = project<HC>(p, shares);
    asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
    if (rank == 0 && p.post) site_end<HC>(p, t, z, site);
    __syncwarp();
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
    cluster.sync();
    return;
  }
  uint32_t mixed = 0;
  if (warp < kPairs / 32) {
    const float lane_pre = sigmoid(project<HC>(p, shares) * pre_scale + pre_base) + p.hc_eps;
    float pre[HC];
    uint32_t v[HC];
#pragma unroll
    for (int l = 0; l < HC; ++l) {
      pre[l] = __shfl_sync(~0u, lane_pre, l);
      v[l] = reinterpret_cast<const uint32_t*>(xs[l])[pair];
    }
    mixed = mix_pair<HC>(pre, v);
    const float square = warp_sum(pair_square(mixed));
    if (lane == 0) squares[warp] = square;
  }
  cluster.sync();  // whose end also says that all sums were read
  // The new streams go to memory only now: a barrier of the cluster waits for what was stored before.
  for (int i = threadIdx.x; p.out && i < HC * kColumns / 4; i += kSinkhorn * 32) {
    const int stream = i / (kColumns / 4), quad = i % (kColumns / 4);
    if (quad * 4 >= count) continue;
    *reinterpret_cast<uint2*>(p.streams + (t * HC + stream) * p.D + first_column + quad * 4) = xs[stream][quad];
  }
  uint32_t* y = reinterpret_cast<uint32_t*>(p.x + t * p.D + first_column);
  if (!p.norm) {
    if (has_pair) y[pair] = mixed;
  } else if (warp < kPairs / 32) {
    float sum = 0.0f;
    for (int s = lane; s < kTerms * blocks; s += 32) sum += cluster.map_shared_rank(squares, s / kTerms)[s % kTerms];
    const float r = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(p.D) + p.norm_eps);
    const float2 w = unpack2(norm), v = unpack2(mixed);
    if (has_pair) y[pair] = pack2(v.x * r * w.x, v.y * r * w.y);
  }
  cluster.sync();  // nobody leaves while others read its sums
}

template <int HC, int PARTS>
Status launch(OpContext& ctx, const Hc& p) {
  const int bytes = PARTS == 1 ? 0 : p.mix * HC * kPart * 4;
  const unsigned blocks = static_cast<unsigned>(ceil_div(p.D, PARTS * kPart));
  DSV4_TRY(allow_shared(hc_kernel<HC, PARTS>, bytes));
  DSV4_TRY(allow_clusters(hc_kernel<HC, PARTS>));
  return enqueue_clusters(ctx, "hc_kernel", hc_kernel<HC, PARTS>, dim3(static_cast<unsigned>(p.T) * blocks), blocks,
                          kThreads, static_cast<size_t>(bytes), p);
}

template <int HC>
Status run_streams(OpContext& ctx, const Hc& p) {
  if (!p.fn) {
    const dim3 grid(static_cast<unsigned>(ceil_div(p.D / 2, 256)), static_cast<unsigned>(p.T));
    return enqueue(ctx, "hc_post_kernel", hc_post_kernel<HC>, grid, 256, 0, p);
  }
  if (p.T > kFewTokens) return hc_many<HC>(ctx, p);
  return p.D <= static_cast<int>(kMaxCluster) * kPart ? launch<HC, 1>(ctx, p) : launch<HC, 2>(ctx, p);
}

Status run(OpContext& ctx, const Hc& p, int64_t hc) {
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
