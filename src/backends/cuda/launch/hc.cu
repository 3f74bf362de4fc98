// mHC: post of one site, projections, mix and norm of the next, in one launch for few tokens. Columns of D are cut
// into parts of 256, a block takes one or two. A warp multiplies eight rows of fn for one stream of its part, brought to
// shared memory while the kernel before still runs; the blocks of one cluster, a token's whole D between them, exchange the sums.
// Many tokens: hc_many.cu.
#include "backends/cuda/launch/hc.h"

#include "backends/cuda/device/barrier.cuh"
#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/ops.h"
#include "base/str.h"

namespace dsv4::cuda {
namespace {

constexpr int kThreads = kShares * 32;
constexpr int kSinkhorn = kShares - 1;  // warp that does Sinkhorn, whose result only the site's end needs
constexpr int kBlocksAtATime = 112;     // of clusters, one block per processor, whatever the processors' groups

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

// A lane's 8 columns of a part of one token, all streams, and of what post adds to stream j.
template <int HC>
struct Columns {
  uint2 x[HC][2], out[2];

  __device__ void load(const Hc& p, int64_t t, int first_column, int count) {
    const bf16* streams = p.streams + (p.rows ? p.rows[t] : t) * HC * p.D + first_column;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = (i * 32 + static_cast<int>(threadIdx.x % 32)) * 4;
#pragma unroll
      for (int l = 0; l < HC; ++l) {
        x[l][i] = at < count ? *reinterpret_cast<const uint2*>(streams + l * p.D + at) : uint2{0, 0};
      }
      out[i] = p.out && at < count ? *reinterpret_cast<const uint2*>(p.out + t * p.D + first_column + at) : uint2{0, 0};
    }
  }

  // Stream j, after post if there is one.
  __device__ void take(const Hc& p, int j, float post, const float (&comb)[HC], uint2 (&to)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      to[i] = x[0][i];
      uint32_t low[HC], high[HC];
#pragma unroll
      for (int l = 0; l < HC; ++l) {
        low[l] = x[l][i].x;
        high[l] = x[l][i].y;
        if (l == j) to[i] = x[l][i];
      }
      if (p.out) to[i] = {post_pair<HC>(post, comb, out[i].x, low), post_pair<HC>(post, comb, out[i].y, high)};
    }
  }
};

template <int HC, int PARTS>
__global__ void __launch_bounds__(kThreads, 1) hc_kernel(const __grid_constant__ Hc p, int blocks) {
  constexpr int kColumns = PARTS * kPart, kPairs = kColumns / 2, kSlices = PARTS * HC, kTerms = kPairs / 32;
  constexpr int kSquares = kMixRow - 1;  // place in a row of sums
  static_assert(kPairs / 32 <= kSinkhorn && kHcWarps <= kSinkhorn);
  extern __shared__ __align__(128) float fn[];  // [mix][HC][kColumns]
  __shared__ float4 sums[kMaxCluster * kSlices][kMixRow / 4];
  __shared__ float shares[kShares][32], squares[kMaxCluster * kTerms];
  __shared__ uint2 xs[HC][kColumns / 4];
  __shared__ Arrivals sums_here, squares_here;
  __shared__ uint64_t fn_here;
  const int rank = blockIdx.x % blocks, first_column = rank * kColumns, count = min(kColumns, p.D - first_column);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t t = blockIdx.x / blocks;
  const int bulk_rows = count == kColumns ? p.mix * HC / 2 : 0;

  if (threadIdx.x == 0) {
    expect_arrivals(sums_here, blocks * kSlices * ((p.mix + 3) / 4 * 16 + 4));
    if (p.norm) expect_arrivals(squares_here, blocks * kTerms * 4);
    barrier_init(&fn_here, 1);
    barriers_known_to_copies();
    barrier_expect(&fn_here, static_cast<uint32_t>(bulk_rows * count * 4));
  }
  __syncthreads();
  block_started();
  // By short loops, as the block has just come and is late: half of the rows in bulk copies, which take their time one after
  // the other, the others meanwhile by all threads.
  for (int row = warp + kShares * lane; row < bulk_rows; row += kShares * 32) {
    copy_bulk_stream(fn + row * kColumns, p.fn + row * p.D + first_column, static_cast<uint32_t>(count * 4), &fn_here);
  }
  constexpr int kRowThreads = kColumns / 4;
  const int at = threadIdx.x % kRowThreads * 4;
#pragma unroll 1
  for (int row = bulk_rows + threadIdx.x / kRowThreads; row < p.mix * HC; row += kThreads / kRowThreads) {
    copy_async_16_or_zero(fn + row * kColumns + at, p.fn + row * p.D + first_column + (at < count ? at : 0), at < count);
  }
  copy_async_commit();
  // A warp's stream and rows of fn, if it has any.
  const int j = warp % HC, first_row = warp / HC * kFnRows;
  const bool holds = first_row < p.mix;
  const int pair = threadIdx.x;  // of the mix
  const bool has_pair = pair < kPairs && 2 * pair < count;
  const uint32_t norm = p.norm && has_pair ? reinterpret_cast<const uint32_t*>(p.norm)[first_column / 2 + pair] : 0;
  const float pre_scale = p.scale[0], pre_base = p.base[lane % HC];
  SiteEnd site;
  if (warp == kSinkhorn && p.post) site.load<HC>(p);
  blocks_started();
  wait_for_previous();

  uint2 x[PARTS][2];
  if (holds) {
    Columns<HC> columns[PARTS];
#pragma unroll
    for (int part = 0; part < PARTS; ++part) columns[part].load(p, t, first_column + part * kPart, count - part * kPart);
    float comb[HC] = {}, post = 0.0f;
    if (p.out) {
      comb_column<HC>(p.old_comb + t * HC * HC, j, comb);
      post = p.old_post[t * HC + j];
    }
#pragma unroll
    for (int part = 0; part < PARTS; ++part) columns[part].take(p, j, post, comb, x[part]);
  }
  copy_async_wait<0>();
  barrier_wait(&fn_here, 0);
  __syncthreads();
#pragma unroll
  for (int part = 0; holds && part < PARTS; ++part) {
    const float4 v[2] = {unpack4(x[part][0]), unpack4(x[part][1])};
    float dots[kFnRows];
#pragma unroll
    for (int r = 0; r < kFnRows; ++r) {
      const int row = first_row + HeldRows::row_of(r);
      float4 w[2] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (row < p.mix) w[i] = *reinterpret_cast<const float4*>(fn + (row * HC + j) * kColumns + part * kPart + (i * 32 + lane) * 4);
      }
      dots[r] = lane_dot(w, v);
    }
    // Four rows of a slice to one block per lane.
    const float sum = warp_sums<kFnRows>(dots);
    float4* slice = sums[(rank * PARTS + part) * HC + j];
    constexpr int kLanes = 32 / kFnRows;
    const int to = lane / 2, half = lane % 2 * 4;
    float4 four;
    four.x = __shfl_sync(~0u, sum, half * kLanes);
    four.y = __shfl_sync(~0u, sum, (half + 1) * kLanes);
    four.z = __shfl_sync(~0u, sum, (half + 2) * kLanes);
    four.w = __shfl_sync(~0u, sum, (half + 3) * kLanes);
    if (to < blocks && first_row + half < p.mix) {
      send(slice + (first_row + half) / 4, four, sums_here, to);
    }
    if (first_row > 0) continue;
    const float square = warp_sum(lane_dot(v, v));
    if (lane < blocks) send(reinterpret_cast<float*>(slice) + kSquares, square, sums_here, lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) xs[j][part * (kPart / 4) + i * 32 + lane] = x[part][i];
  }
  wait_arrivals(sums_here);
  float share = 0.0f;
  if (lane <= p.mix) {
#pragma unroll 4
    for (int s = warp; s < kSlices * blocks; s += kShares) {
      share += reinterpret_cast<const float*>(sums[s])[lane < p.mix ? lane : kSquares];
    }
  }
  shares[warp][lane] = share;
  __syncthreads();
  if (warp == kSinkhorn) {
    // All blocks have sent their sums, and so read what this may overwrite.
    if (rank == 0 && p.post) site_end<HC>(p, t, project<HC>(p, shares), site);
    return;
  }
  if (warp >= kPairs / 32) {
    constexpr int kRow = kColumns / 4;
    for (int i = threadIdx.x - kPairs; p.out && i < HC * kRow; i += kSinkhorn * 32 - kPairs) {
      const int stream = i / kRow, quad = i % kRow;
      if (quad * 4 >= count) continue;
      *reinterpret_cast<uint2*>(p.streams + (t * HC + stream) * p.D + first_column + quad * 4) = xs[stream][quad];
    }
    return;
  }
  const float lane_pre = sigmoid(project<HC>(p, shares) * pre_scale + pre_base) + p.hc_eps;
  float pre[HC];
  uint32_t v[HC];
#pragma unroll
  for (int l = 0; l < HC; ++l) {
    pre[l] = __shfl_sync(~0u, lane_pre, l);
    v[l] = reinterpret_cast<const uint32_t*>(xs[l])[pair];
  }
  const uint32_t mixed = mix_pair<HC>(pre, v);
  uint32_t* y = reinterpret_cast<uint32_t*>(p.x + t * p.D + first_column);
  if (!p.norm) {
    if (has_pair) y[pair] = mixed;
    return;
  }
  const float square = warp_sum(pair_square(mixed));
  if (lane < blocks) send(squares + rank * kTerms + warp, square, squares_here, lane);
  wait_arrivals(squares_here);
  float sum = 0.0f;
#pragma unroll 2
  for (int s = lane; s < kTerms * blocks; s += 32) sum += squares[s];
  const float r = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(p.D) + p.norm_eps);
  const float2 w = unpack2(norm), m = unpack2(mixed);
  if (has_pair) y[pair] = pack2(m.x * r * w.x, m.y * r * w.y);
}

template <int HC, int PARTS>
Status launch(OpContext& ctx, const Hc& p) {
  const int bytes = p.mix * HC * PARTS * kPart * 4;
  const unsigned blocks = static_cast<unsigned>(ceil_div(p.D, PARTS * kPart));
  DSV4_TRY(allow_shared(hc_kernel<HC, PARTS>, bytes));
  DSV4_TRY(allow_clusters(hc_kernel<HC, PARTS>));
  return enqueue_clusters(ctx, "hc_kernel", hc_kernel<HC, PARTS>, dim3(static_cast<unsigned>(p.T) * blocks), blocks,
                          kThreads, static_cast<size_t>(bytes), p, static_cast<int>(blocks));
}

template <int HC>
Status run_streams(OpContext& ctx, const Hc& p) {
  if (!p.fn) {
    const dim3 grid(static_cast<unsigned>(ceil_div(p.D / 2, 256)), static_cast<unsigned>(p.T));
    return enqueue(ctx, "hc_post_kernel", hc_post_kernel<HC>, grid, 256, 0, p);
  }
  // A cluster of one block cannot send to itself.
  if (p.T == 1 && p.D > kPart && p.D <= static_cast<int>(kMaxCluster) * kPart) return launch<HC, 1>(ctx, p);
  const int blocks = ceil_div(p.D, 2 * kPart);
  return blocks > 1 && p.T * blocks <= kBlocksAtATime ? launch<HC, 2>(ctx, p) : hc_many<HC>(ctx, p);
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
