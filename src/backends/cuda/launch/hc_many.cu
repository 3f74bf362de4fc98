// mHC of many tokens, bit for bit what the cluster of hc.cu makes of one. First post and the sums of every slice: a
// block keeps fn of its 256 columns (all streams) in registers and takes tokens in rounds of one per warp, the loads
// of a round under way during the sums of the round before. Then the rest, a token per block.
#include <algorithm>

#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/launch/hc.h"

namespace dsv4::cuda {
namespace {

constexpr int kUnit = 4;        // tokens whose sums a warp adds at once
constexpr int kMixQuads = 4;       // groups of 4 columns that a thread of the second kernel has
constexpr int kMixThreads = 512;  // that work on columns, and a warp for Sinkhorn
constexpr int kTermQuads = 16;  // 32 pairs
static_assert(kMixQuads * kMixThreads * 4 >= kMostColumns);
// The second kernel should find in L2 what the first one wrote.
constexpr int64_t kChunkBytes = int64_t{80} << 20;

// For each bit of a lane's slot number, swaps the values that differ in it: slot i gets value i ^ (l * N / 32).
template <int N>
__device__ void to_slots(float (&v)[N]) {
  const int slot = static_cast<int>(threadIdx.x % 32) / (32 / N);
#pragma unroll
  for (int b = 1; b < N; b *= 2) {
    const bool swap = slot & b;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i & b) continue;
      const float low = v[i], high = v[i + b];
      v[i] = swap ? high : low;
      v[i + b] = swap ? low : high;
    }
  }
}

// What a warp has of one token of a part: 8 columns a lane, and a lane's value of comb, then post.
template <int HC>
struct Columns {
  uint2 x[HC][2], out[2];
  float weight;

  // Of token t, or zeros; halves: how many of the lane's two groups of columns there are.
  __device__ void load(const Hc& p, int64_t t, bool present, int first_column, int halves) {
    const int lane = threadIdx.x % 32;
    if (!present) halves = 0;
    const bf16* streams = p.streams + (present && p.rows ? p.rows[t] : t) * HC * p.D + first_column;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = (i * 32 + lane) * 4;
#pragma unroll
      for (int j = 0; j < HC; ++j) {
        x[j][i] = i < halves ? *reinterpret_cast<const uint2*>(streams + j * p.D + at) : uint2{0, 0};
      }
      out[i] = p.out && i < halves ? *reinterpret_cast<const uint2*>(p.out + t * p.D + first_column + at) : uint2{0, 0};
    }
    weight = 0.0f;
    if (!present || !p.out) return;
    if (lane < HC * HC) weight = p.old_comb[t * HC * HC + lane];
    else if (lane < HC * HC + HC) weight = p.old_post[t * HC + lane - HC * HC];
  }

  // weights: 32 floats of the warp's own.
  __device__ void post(float* weights) {
    __syncwarp();
    weights[threadIdx.x % 32] = weight;
    __syncwarp();
    float comb[HC][HC], factor[HC];  // comb by the stream that comes out
#pragma unroll
    for (int l = 0; l < HC; ++l) {
#pragma unroll
      for (int j = 0; j < HC; ++j) comb[l][j] = weights[j * HC + l];
      factor[l] = weights[HC * HC + l];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t low[HC], high[HC];
#pragma unroll
      for (int l = 0; l < HC; ++l) {
        low[l] = x[l][i].x;
        high[l] = x[l][i].y;
      }
#pragma unroll
      for (int l = 0; l < HC; ++l) {
        x[l][i] = {post_pair<HC>(factor[l], comb[l], out[i].x, low), post_pair<HC>(factor[l], comb[l], out[i].y, high)};
      }
    }
  }
};

template <int HC>
constexpr int shared_bytes() { return 2 * kHcWarps * HC * kPart * 2 + kHcWarps * 32 * 4; }

// sums [T][slices][kMixRow]. Blocks of one row of the grid share `per_block` tokens.
template <int HC>
__global__ void __launch_bounds__(kHcWarps * 32, 1)
    hc_sums_kernel(const __grid_constant__ Hc p, float* sums, int per_block) {
  extern __shared__ float4 shared[];
  constexpr int kRow = HC * kPart / 4, kRound = kHcWarps * kRow;  // uint2 of one token, of a round
  uint2* xs = reinterpret_cast<uint2*>(shared);               // [2][kHcWarps][HC][kPart / 4]
  float* weights = reinterpret_cast<float*>(xs + 2 * kRound);  // [kHcWarps][32]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int part = blockIdx.x, slices = gridDim.x * HC;
  const int first_column = part * kPart, count = min(kPart, p.D - first_column);
  const int halves = (lane * 4 < count) + ((32 + lane) * 4 < count);
  // A warp's stream and rows of fn; where these are fewer than warps, units are shared out as well.
  const int groups = (p.mix + kFnRows - 1) / kFnRows, roles = HC * groups;
  const int j = warp % HC, first_row = warp / HC % groups * kFnRows, first_unit = warp / roles, units = kHcWarps / roles;
  HeldRows fn;
  fn.load<HC>(p, first_row, j, first_column, count);
  wait_for_previous();

  const int begin = blockIdx.y * per_block, end = min(begin + per_block, p.T);
  Columns<HC> columns;
  columns.load(p, begin + warp, begin + warp < end, first_column, halves);
  int round = 0;  // or kRound
  for (int first = begin; first < end; first += kHcWarps, round ^= kRound) {
    const int64_t t = first + warp;
    if (p.out) {
      columns.post(weights + warp * 32);
      bf16* streams = p.streams + t * HC * p.D + first_column + lane * 4;
#pragma unroll
      for (int l = 0; l < HC; ++l) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (t < end && i < halves) *reinterpret_cast<uint2*>(streams + l * p.D + i * (kPart / 2)) = columns.x[l][i];
        }
      }
    }
    float squares[HC];
#pragma unroll
    for (int l = 0; l < HC; ++l) {
      float4 v[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        xs[round + warp * kRow + (l * 2 + i) * 32 + lane] = columns.x[l][i];
        v[i] = unpack4(columns.x[l][i]);
      }
      squares[l] = lane_dot(v, v);
    }
    to_slots(squares);
    const float square = warp_sums<HC>(squares);
    constexpr int kLanes = 32 / HC;
    if (t < end && lane % kLanes == 0) sums[(t * slices + part * HC + lane / kLanes) * kMixRow + p.mix] = square;
    columns.load(p, t + kHcWarps, t + kHcWarps < end, first_column, halves);
    __syncthreads();

    const int tokens = min(kHcWarps, end - first);
    for (int unit = first_unit; unit * kUnit < tokens; unit += units) {
      // Slot 4 r + m of a lane is slot r of fn's rows and token m ^ (lane % 4): as warp_sums wants it.
      float v[kFnRows * kUnit];
      const int at = (lane % kUnit * HC + j) * (kPart / 4) + lane;
#pragma unroll
      for (int m = 0; m < kUnit; ++m) {
        const uint2* row = xs + round + unit * (kUnit * kRow) + (at ^ m * kRow);
        const float4 x[2] = {unpack4(row[0]), unpack4(row[32])};
#pragma unroll
        for (int r = 0; r < kFnRows; ++r) v[r * kUnit + m] = lane_dot(fn.w[r], x);
      }
      const float sum = warp_sums<kFnRows * kUnit>(v);
      const int token = unit * kUnit + lane % kUnit, row = first_row + lane / kUnit;
      if (token < tokens && row < p.mix) {
        sums[(static_cast<int64_t>(first + token) * slices + part * HC + j) * kMixRow + row] = sum;
      }
    }
  }
}

template <int HC>
__global__ void __launch_bounds__(kMixThreads + 32, 2)
    hc_mix_kernel(const __grid_constant__ Hc p, const float* sums, int slices) {
  __shared__ float shares[kShares][32], squares[kMixQuads * kMixThreads / kTermQuads];
  const int workers = blockDim.x - 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t t = blockIdx.x;
  const bool works = threadIdx.x < workers;
  const int quads = p.D / 4;
  const auto quad_of = [&](int k) { return static_cast<int>(k * workers + threadIdx.x); };
  const float pre_scale = p.scale[0], pre_base = p.base[lane % HC];
  SiteEnd site;
  if (!works && p.post) site.load<HC>(p);
  wait_for_previous();

  uint2 x[kMixQuads][HC];
  const int64_t row = p.rows ? p.rows[t] : t;
#pragma unroll
  for (int k = 0; k < kMixQuads; ++k) {
#pragma unroll
    for (int j = 0; j < HC; ++j) {
      x[k][j] = works && quad_of(k) < quads
                    ? reinterpret_cast<const uint2*>(p.streams + (row * HC + j) * p.D)[quad_of(k)]
                    : uint2{0, 0};
    }
  }
  for (int s = warp; s < kShares; s += blockDim.x / 32) {
    float share = 0.0f;
    if (lane <= p.mix) {
#pragma unroll 4
      for (int i = s; i < slices; i += kShares) share += sums[(t * slices + i) * kMixRow + lane];
    }
    shares[s][lane] = share;
  }
  __syncthreads();
  const float z = project<HC>(p, shares);
  if (!works) {
    if (p.post) site_end<HC>(p, t, z, site);
    return;
  }
  const float lane_pre = sigmoid(z * pre_scale + pre_base) + p.hc_eps;
  float pre[HC];
#pragma unroll
  for (int j = 0; j < HC; ++j) pre[j] = __shfl_sync(~0u, lane_pre, j);
  uint2 mixed[kMixQuads];
#pragma unroll
  for (int k = 0; k < kMixQuads; ++k) {
    uint32_t low[HC], high[HC];
#pragma unroll
    for (int j = 0; j < HC; ++j) {
      low[j] = x[k][j].x;
      high[j] = x[k][j].y;
    }
    mixed[k] = {mix_pair<HC>(pre, low), mix_pair<HC>(pre, high)};
  }
  uint2* y = reinterpret_cast<uint2*>(p.x + t * p.D);
  if (!p.norm) {
#pragma unroll
    for (int k = 0; k < kMixQuads; ++k) {
      if (quad_of(k) < quads) y[quad_of(k)] = mixed[k];
    }
    return;
  }
  // 16 lanes hold the 32 pairs of a term, a lane two neighbours: these are added last.
#pragma unroll
  for (int k = 0; k < kMixQuads; ++k) {
    float even = pair_square(mixed[k].x), odd = pair_square(mixed[k].y);
    for (int o = kTermQuads / 2; o; o /= 2) {
      even += __shfl_xor_sync(~0u, even, o);
      odd += __shfl_xor_sync(~0u, odd, o);
    }
    if (lane % kTermQuads == 0) squares[quad_of(k) / kTermQuads] = even + odd;
  }
  asm volatile("bar.sync 1, %0;" ::"r"(workers) : "memory");
  float sum = 0.0f;
  for (int s = lane; s < kMixQuads * workers / kTermQuads; s += 32) sum += squares[s];
  const float r = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(p.D) + p.norm_eps);
#pragma unroll
  for (int k = 0; k < kMixQuads; ++k) {
    if (quad_of(k) >= quads) continue;
    const float4 w = unpack4(reinterpret_cast<const uint2*>(p.norm)[quad_of(k)]), v = unpack4(mixed[k]);
    y[quad_of(k)] = {pack2(v.x * r * w.x, v.y * r * w.y), pack2(v.z * r * w.z, v.w * r * w.w)};
  }
}

// The same for tokens first .. first + n alone.
Hc tokens_of(Hc p, int64_t hc, int64_t first, int64_t n) {
  if (p.rows) p.rows += first;
  else p.streams += first * hc * p.D;
  if (p.out) {
    p.out += first * p.D;
    p.old_post += first * hc;
    p.old_comb += first * hc * hc;
  }
  p.x += first * p.D;
  if (p.post) {
    p.post += first * hc;
    p.comb += first * hc * hc;
  }
  p.T = static_cast<int32_t>(n);
  return p;
}

}  // namespace

template <int HC>
Status hc_many(OpContext& ctx, const Hc& all) {
  const int parts = ceil_div(all.D, kPart), slices = parts * HC;
  const int groups = std::max(1, kProcessors / parts);
  const int64_t rounds = kChunkBytes / (int64_t{HC} * all.D * 2) / (groups * kHcWarps);
  const int64_t chunk = std::max<int64_t>(1, rounds) * groups * kHcWarps;
  const unsigned mix_threads = static_cast<unsigned>(ceil_div(ceil_div(all.D, 4 * kMixQuads), 32) * 32 + 32);
  DSV4_TRY(allow_shared(hc_sums_kernel<HC>, shared_bytes<HC>()));
  Workspace::Scope scratch(ctx.workspace);
  DSV4_ASSIGN(float* sums, scratch.take<float>(std::min<int64_t>(all.T, chunk) * slices * kMixRow));
  for (int64_t first = 0; first < all.T; first += chunk) {
    const Hc p = tokens_of(all, HC, first, std::min<int64_t>(chunk, all.T - first));
    const int per_block = ceil_div(p.T, groups);
    const dim3 grid(static_cast<unsigned>(parts), static_cast<unsigned>(ceil_div(p.T, per_block)));
    DSV4_TRY(enqueue(ctx, "hc_sums_kernel", hc_sums_kernel<HC>, grid, kHcWarps * 32, shared_bytes<HC>(), p, sums, per_block));
    DSV4_TRY(enqueue(ctx, "hc_mix_kernel", hc_mix_kernel<HC>, static_cast<unsigned>(p.T), mix_threads, 0, p, sums, slices));
  }
  return {};
}

template Status hc_many<1>(OpContext&, const Hc&);
template Status hc_many<2>(OpContext&, const Hc&);
template Status hc_many<4>(OpContext&, const Hc&);

}  // namespace dsv4::cuda
