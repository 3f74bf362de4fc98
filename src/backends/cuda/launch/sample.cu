// sample: a cluster per row, whose blocks share out the logits and keep them in shared memory. All sums are of
// integers (ops/sampling.h), so atomics and any order of them give the host's token.
//
// The largest logit first: greedy rows end there. Top-k and top-p look for the last key that stays, in histograms of
// counts or weights over ever narrower ranges of keys. The draw is a search in the sums of blocks, warps and lanes.
#include <cooperative_groups.h>

#include "backends/cuda/core.h"
#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/ops.h"
#include "base/str.h"
#include "ops/check.h"
#include "ops/sampling.h"

namespace dsv4::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kBlocks = 8;  // of a cluster
constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kBinBits = 9, kBins = 1 << kBinBits;  // one per thread
static_assert(kBins == kThreads);
// A weight of at least one unit has a distance to the largest logit of less than 43 ln 2 temperatures.
constexpr float kBinsPerDistance = 17.0f;
static_assert(43 * 0.6932f * kBinsPerDistance < kBins);
constexpr uint32_t kFull = ~0u;

struct Bins {
  uint32_t count[kBins], low[kBins], high[kBins];  // keys; their weights in two words
};

struct SampleShared {
  Arrivals found_best, summed;
  uint4 best[kBlocks];  // of each block: its best key, whether a logit is unsound
  uint2 sums[kBlocks];  // of each block: weights that can be drawn
  Bins bins[2];         // passes take turns
  uint64_t range[2];    // of this block's keys in a bin: lowest, highest
  uint64_t warps[kWarps], highest[kWarps];
  struct {
    int bin;
    uint32_t count;
    uint64_t before, sum;  // in better bins, in this one
  } edge;
};

__device__ uint64_t wide(uint32_t low, uint32_t high) { return uint64_t{high} << 32 | low; }
__device__ uint64_t greater(uint64_t a, uint64_t b) { return a > b ? a : b; }
__device__ uint64_t lesser(uint64_t a, uint64_t b) { return a < b ? a : b; }
__device__ uint64_t warp_greatest(uint64_t v) {
  for (int o = 16; o; o /= 2) v = greater(v, __shfl_xor_sync(kFull, v, o));
  return v;
}
// Of this lane and those below it.
__device__ uint64_t warp_through(uint64_t v) {
  for (int o = 1; o < 32; o *= 2) {
    const uint64_t other = __shfl_up_sync(kFull, v, o);
    if (static_cast<int>(threadIdx.x % 32) >= o) v += other;
  }
  return v;
}

// A block's part of a row: logits of ids first .. first + n - 1.
struct Part {
  float* logits;
  int first, n;
  float largest;  // of the row
};

// What may be drawn: not below the key `from`, with a weight.
struct Candidate {
  uint64_t key, weight;
  __device__ Candidate(const Part& p, const SampleRow& row, int i)
      : key(sample_key(p.logits[i], p.first + i)), weight(sample_weight(p.logits[i], p.largest, row.inverse_temperature)) {}
};

// Best first: the bins of a range of keys, or of the whole row.
struct Range {
  bool all = true;
  uint64_t lowest = 0, highest = 0;
  int shift = 0;
};
__device__ int bin_of(const Range& range, const Part& p, const SampleRow& row, int i, uint64_t key) {
  if (range.all) return static_cast<int>((p.largest - p.logits[i]) * row.inverse_temperature * kBinsPerDistance);
  return static_cast<int>((range.highest - key) >> range.shift);
}

// The sum over the cluster of every bin; the one in which the sum of bins reaches `target` becomes s.edge, all threads
// see it. kShare: the target is `share` of the total. False where the total is less.
template <bool kWeights, bool kShare>
__device__ bool find_edge(SampleShared& s, Bins& bins, uint64_t& target, float share) {
  const cg::cluster_group cluster = cg::this_cluster();
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  cluster.sync();
  uint32_t count = 0;
  uint64_t sum = 0;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    const Bins& from = *cluster.map_shared_rank(&bins, b);
    count += from.count[thread];
    if (kWeights) sum += wide(from.low[thread], 0) + (uint64_t{from.high[thread]} << 32);
  }
  if (!kWeights) sum = count;
  uint64_t through = warp_through(sum);
  if (lane == 31) s.warps[warp] = through;
  __syncthreads();
  uint64_t total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) through += s.warps[w];
    total += s.warps[w];
  }
  if (kShare) target = greater(1, top_p_target(total, share));
  if (through >= target && through - sum < target) s.edge = {thread, count, through - sum, sum};
  __syncthreads();
  return total >= target;
}

// Lowest and highest key in the edge's bin, over the cluster.
__device__ void measure_edge(SampleShared& s, const Part& p, const SampleRow& row, uint64_t from, Range& range) {
  const cg::cluster_group cluster = cg::this_cluster();
  const int thread = threadIdx.x;
  uint64_t lowest = ~uint64_t{0}, highest = 0;
  for (int i = thread; i < p.n; i += kThreads) {
    const Candidate c(p, row, i);
    if (c.weight == 0 || c.key < from || bin_of(range, p, row, i, c.key) != s.edge.bin) continue;
    lowest = lesser(lowest, c.key);
    highest = greater(highest, c.key);
  }
  lowest = ~warp_greatest(~lowest);
  highest = warp_greatest(highest);
  if (thread % 32 == 0) {
    s.warps[thread / 32] = lowest;
    s.highest[thread / 32] = highest;
  }
  __syncthreads();
  if (thread == 0) {
    for (int w = 1; w < kWarps; ++w) {
      lowest = lesser(lowest, s.warps[w]);
      highest = greater(highest, s.highest[w]);
    }
    s.range[0] = lowest;
    s.range[1] = highest;
  }
  cluster.sync();
  range = {false, ~uint64_t{0}, 0, 0};
  for (int b = 0; b < kBlocks; ++b) {
    const uint64_t* const other = cluster.map_shared_rank(&s.range[0], b);
    range.lowest = lesser(range.lowest, other[0]);
    range.highest = greater(range.highest, other[1]);
  }
}

// The key of the last candidate, best first, with which the sum over candidates (of one each, or of their weights)
// reaches `target`, or `share` of them all; `from` where there are fewer. `turn`: of the two sets of bins.
template <bool kWeights>
__device__ uint64_t last_key(SampleShared& s, const Part& p, const SampleRow& row, uint64_t from, uint64_t target,
                             float share, int& turn) {
  const int thread = threadIdx.x;
  Range range;
  for (;;) {
    Bins& bins = s.bins[turn];
    turn ^= 1;
    bins.count[thread] = bins.low[thread] = bins.high[thread] = 0;
    __syncthreads();
    for (int i = thread; i < p.n; i += kThreads) {
      const Candidate c(p, row, i);
      if (c.weight == 0 || c.key < from) continue;
      if (!range.all && (c.key < range.lowest || c.key > range.highest)) continue;
      const int bin = bin_of(range, p, row, i, c.key);
      atomicAdd(&bins.count[bin], 1u);
      if (!kWeights) continue;
      const uint32_t low = static_cast<uint32_t>(c.weight), before = atomicAdd(&bins.low[bin], low);
      const uint32_t high = static_cast<uint32_t>(c.weight >> 32) + (before + low < before ? 1u : 0u);
      if (high) atomicAdd(&bins.high[bin], high);
    }
    const bool reached = range.all && kWeights ? find_edge<kWeights, kWeights>(s, bins, target, share)
                                               : find_edge<kWeights, false>(s, bins, target, share);
    if (!reached) return from;
    const auto edge = s.edge;
    target -= edge.before;
    const bool found = edge.count == 1 || edge.sum == target;
    if (range.all) {
      measure_edge(s, p, row, from, range);
    } else {
      const uint64_t begin = static_cast<uint64_t>(edge.bin) << range.shift, width = (uint64_t{1} << range.shift) - 1;
      range.highest -= begin;
      range.lowest = greater(range.lowest, range.highest - lesser(range.highest, width));
    }
    if (found || range.lowest == range.highest) return range.lowest;
    const int bits = 64 - __clzll(static_cast<long long>(range.highest - range.lowest));
    range.shift = bits > kBinBits ? bits - kBinBits : 0;
  }
}

// The weight of logit i as far as it can be drawn.
__device__ uint64_t drawable(const Part& p, const SampleRow& row, uint64_t from, int i) {
  if (i >= p.n) return 0;
  const float relative = relative_weight(p.logits[i], p.largest, row.inverse_temperature);
  if (relative < row.min_p || (from != 0 && sample_key(p.logits[i], p.first + i) < from)) return 0;
  return sample_weight(relative);
}

__device__ void draw(SampleShared& s, const Part& p, const SampleRow& row, uint64_t from, int rank, int32_t* token) {
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  // Neighbouring ids for each thread; lanes begin at different places of theirs, so in different banks.
  const int run = max(1, (p.n + kThreads - 1) / kThreads);
  uint64_t mine = 0;
  for (int i = 0, at = lane % run; i < run; ++i) {
    mine += drawable(p, row, from, thread * run + at);
    at = at + 1 < run ? at + 1 : 0;
  }
  const uint64_t through = warp_through(mine);
  if (lane == 31) s.warps[warp] = through;
  __syncthreads();
  uint64_t block = 0;
  for (int w = 0; w < kWarps; ++w) block += s.warps[w];
  // Whoever arrives has read all that it wants of the others' memory: past the wait a block may end.
  block_started();
  if (thread < kBlocks) {
    send(&s.sums[rank], make_uint2(static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32)), s.summed, thread);
  }
  wait_arrivals(s.summed);
  blocks_started();
  uint64_t total = 0, before = 0;
  for (int b = 0; b < kBlocks; ++b) {
    const uint64_t sum = wide(s.sums[b].x, s.sums[b].y);
    if (b < rank) before += sum;
    total += sum;
  }
  const uint64_t target = sample_target(row.seed, row.position, total);
  for (int w = 0; w < warp; ++w) before += s.warps[w];
  before += through - mine;
  const uint32_t found = __ballot_sync(kFull, target >= before && target - before < mine);
  if (!found) return;
  const int holder = __ffs(static_cast<int>(found)) - 1;
  before = __shfl_sync(kFull, before, holder);
  for (int i = (warp * 32 + holder) * run;; i += 32) {
    const uint64_t sum = before + warp_through(drawable(p, row, from, i + lane));
    const uint32_t past = __ballot_sync(kFull, target < sum);
    if (past) {
      if (lane == 0) *token = p.first + i + __ffs(static_cast<int>(past)) - 1;
      return;
    }
    before = __shfl_sync(kFull, sum, 31);
  }
}

__global__ void __launch_bounds__(kThreads) sample_kernel(const SampleArgs a, int share) {
  extern __shared__ __align__(1024) char sample_shared[];
  SampleShared& s = *reinterpret_cast<SampleShared*>(sample_shared);
  Part p{.logits = reinterpret_cast<float*>(sample_shared + sizeof(SampleShared)), .first = 0, .n = 0, .largest = 0};
  const int rank = static_cast<int>(blockIdx.x % kBlocks), thread = threadIdx.x;
  const int64_t r = blockIdx.x / kBlocks;
  if (thread == 0) {
    expect_arrivals(s.found_best, kBlocks * sizeof(uint4));
    expect_arrivals(s.summed, kBlocks * sizeof(uint2));
  }
  block_started();
  const SampleRow row = a.rows[r];  // of the batch: no kernel writes it
  wait_for_previous();
  const auto finish = [&](int32_t token) {
    if (rank == 0 && thread == 0) a.tokens[r] = token;
  };
  blocks_started();
  if (row.kind == SampleKind::kNone) return finish(kNoToken);

  p.first = rank * share;
  p.n = static_cast<int>(min(static_cast<int64_t>(share), a.V - p.first));
  const float* const logits = a.logits + r * a.V + p.first;
  const bool keep = row.kind == SampleKind::kDraw;
  float largest = -INFINITY;
  int id = -1;
  bool unsound = false;
  // In rising order of ids, so that of equals the first stays.
  const auto take = [&](int i, float v) {
    unsound |= !(v < INFINITY);
    if (v > largest) {
      largest = v;
      id = p.first + i;
    }
    if (keep) p.logits[i] = v;
  };
  if (a.V % 4 == 0) {
#pragma unroll 4
    for (int i = 4 * thread; i < p.n; i += 4 * kThreads) {
      const float4 v = *reinterpret_cast<const float4*>(logits + i);
      take(i, v.x);
      take(i + 1, v.y);
      take(i + 2, v.z);
      take(i + 3, v.w);
    }
  } else {
    for (int i = thread; i < p.n; i += kThreads) take(i, logits[i]);
  }
  const uint64_t mine = warp_greatest(sample_key(largest, id));
  const bool broken = __any_sync(kFull, unsound);
  if (thread % 32 == 0) {
    s.warps[thread / 32] = mine;
    s.highest[thread / 32] = broken;
  }
  __syncthreads();
  if (thread < (keep ? kBlocks : 1)) {
    uint64_t best = 0, any = 0;
    for (int w = 0; w < kWarps; ++w) {
      best = greater(best, s.warps[w]);
      any |= s.highest[w];
    }
    send(&s.best[rank], make_uint4(static_cast<uint32_t>(best), static_cast<uint32_t>(best >> 32), static_cast<uint32_t>(any), 0),
         s.found_best, thread);
  }
  if (!keep && rank > 0) return;
  wait_arrivals(s.found_best);
  uint64_t best = 0;
  unsound = false;
  for (int b = 0; b < kBlocks; ++b) {
    best = greater(best, wide(s.best[b].x, s.best[b].y));
    unsound |= s.best[b].z != 0;
  }
  p.largest = key_logit(best);
  if (unsound || p.largest == -INFINITY) return finish(kNoToken);
  if (!keep) return finish(key_id(best));

  uint64_t from = 0;
  int turn = 0;
  if (row.top_k > 0 && row.top_k < a.V) {
    from = last_key<false>(s, p, row, from, static_cast<uint64_t>(row.top_k), 0, turn);
  }
  if (row.top_p < 1) from = last_key<true>(s, p, row, from, 0, row.top_p, turn);
  __syncthreads();
  draw(s, p, row, from, rank, a.tokens + r);
}

}  // namespace

Status sample(OpContext& ctx, const SampleArgs& a) {
  if (a.R == 0) return {};
  DSV4_TRY(check_sample_vocab(a.V));
  const int64_t share = ceil_div<int64_t>(ceil_div<int64_t>(a.V, kBlocks), 32) * 32;
  const int64_t bytes = static_cast<int64_t>(sizeof(SampleShared)) + share * 4;
  if (bytes > kMaxSharedBytes) {
    return Status(Code::kUnsupported,
                  cat("cuda: sample: ", a.V, " logits in a row: expected at most ",
                      (kMaxSharedBytes - static_cast<int64_t>(sizeof(SampleShared))) / 128 * 32 * kBlocks));
  }
  DSV4_TRY(allow_shared(sample_kernel, static_cast<int>(bytes)));
  return enqueue_clusters(ctx, "sample_kernel", sample_kernel, dim3(static_cast<unsigned>(a.R * kBlocks)), kBlocks, kThreads,
                          static_cast<size_t>(bytes), a, static_cast<int>(share));
}

}  // namespace dsv4::cuda
