// The experts of one row, in two kernels, each a block per processor:
//   up    w1 and w3 with act8 of x, clamp, SwiGLU, routing weight; h as it is
//   down  w2 with act8 of h, and the sum over the experts
// A block has jobs of about as many bytes of weights each, of which a team of two warps takes one after the other: of a routed
// expert a tile of w1 and that of w3, or two of w2; of the shared one, in E4M3, one of these tiles. Where a block of `up` has an
// odd number, two teams have a tile of the last one each. In `down` a block has the same rows of all experts, so their sum needs
// no memory but its own. What a block multiplies depends on the row's choice of experts for its weights alone, and those
// of the shared expert not even for them: they are on their way while the kernels in front, which leave memory idle, choose.
#include <algorithm>

#include "backends/cuda/device/barrier.cuh"
#include "backends/cuda/device/experts.cuh"
#include "backends/cuda/device/quantise.cuh"
#include "backends/cuda/device/stream.cuh"

namespace dsv4::cuda {
namespace {

// `up` leaves the processors that the router has: a block there would come late, and all others wait for it.
template <bool kUp>
constexpr int kBlocks = kUp ? kProcessors - kRouterBlocks : kProcessors;
template <bool kUp>
constexpr int kTeams = kUp ? 10 : 8;  // of neighbouring warps, one per share of K: with one job each, for Flash
template <bool kUp>
constexpr int kWarps = kTeams<kUp> * kShares;  // that multiply
template <bool kUp>
constexpr int kAskingWarps = (kTeams<kUp> + 3) / 4 * 4;  // one per team, in whole warpgroups
template <bool kUp>
constexpr int kThreads = (kWarps<kUp> + kAskingWarps<kUp>) * 32;
// Of the 64 or 80 per thread that a block of so many gets.
template <bool kUp>
constexpr int kMultiplyRegisters = kUp ? 88 : 104;
template <bool kUp>
constexpr int kAskRegisters = kUp ? 24 : 32;
constexpr int kStages = 2, kWide = 4;  // of a team's ring (device/stream.cuh)
constexpr int kPairRows = kPair * kTileRows;

// A job: of the row's choice `slot`, of the shared expert -1: tile `unit` of w1 and w3, or tiles 2 unit and 2 unit + 1 of
// w2, both of them or only `half`.
constexpr int kWhole = -1;
struct Job {
  int slot, unit, half;
};

// Which jobs the blocks have.
struct Cut {
  int32_t routed_units, shared_units;  // of an expert
  int32_t most_units;                  // `down`: of a block

  // `up`: of all blocks.
  __host__ __device__ int jobs(int k) const { return k * routed_units + 2 * shared_units; }
};

// Those of this block: job i < count.
template <bool kUp>
struct Jobs {
  int first_shared = 0, shared = 0, first_routed = 0, whole = 0, count = 0;  // from job `whole` on: halves of one
  int per_expert = 0, k = 0;                                                  // units of a routed expert; experts

  __device__ Jobs(const Experts& p, const Cut& cut) : per_expert(cut.routed_units), k(p.k) {
    const int block = blockIdx.x, blocks = gridDim.x;
    if constexpr (kUp) {
      // Of as many jobs as all others have, as many of the shared expert.
      const int all = cut.jobs(k), first = all * block / blocks, end = all * (block + 1) / blocks;
      first_shared = cut.shared_units * first / all;
      shared = 2 * (cut.shared_units * end / all - first_shared);
      first_routed = first - 2 * first_shared;
      // Halves, like those of the shared expert, are of neighbouring teams, as kTeams is even.
      count = end - first;
      whole = count / 2 * 2;
      count += count % 2;
    } else {
      count = (cut.routed_units - block + blocks - 1) / blocks * (k + 2);
    }
  }
  __device__ Job at(int i) const {
    if constexpr (kUp) {
      if (i < shared) return {-1, first_shared + i / 2, i % 2};
      const int routed = first_routed + min(i, whole) - shared;
      return {routed / per_expert, routed % per_expert, i < whole ? kWhole : i - whole};
    } else {
      const int unit = static_cast<int>(blockIdx.x) + i / (k + 2) * static_cast<int>(gridDim.x), j = i % (k + 2);
      return {j < k ? j : -1, unit, j < k ? kWhole : j - k};
    }
  }
};

template <bool kUp>
__device__ Matrix shared_matrix(const Experts& p, int half) { return !kUp ? p.shared_w2 : half == 0 ? p.shared_w1 : p.shared_w3; }

template <Product P>
__device__ Tile tile_or_any(const Matrix& m, int tile) { return tile_of<P>(m, tile < m.tiles() ? tile : 0); }

// The tiles of a job, of expert `expert` where it is a routed one's, and of half a job.
template <Product P>
__device__ void tiles_of(const Experts& p, const Job& job, int expert, Tile (&tiles)[1]) {
  tiles[0] = tile_or_any<P>(cuda::at(job.half == 0 ? p.w1 : p.w3, expert), job.unit);
}
template <Product P, bool kUp>
__device__ void tiles_of(const Experts& p, const Job& job, int expert, Tile (&tiles)[kPair]) {
  const Matrix first = cuda::at(kUp ? p.w1 : p.w2, expert);
  tiles[0] = tile_or_any<P>(first, kUp ? job.unit : job.unit * kPair);
  tiles[1] = kUp ? tile_or_any<P>(cuda::at(p.w3, expert), job.unit) : tile_or_any<P>(first, job.unit * kPair + 1);
}
template <bool kUp>
__device__ void tiles_of(const Experts& p, const Job& job, Tile (&tiles)[1]) {
  tiles[0] = tile_or_any<Product::kFp8>(shared_matrix<kUp>(p, job.half), kUp ? job.unit : job.unit * kPair + job.half);
}

// What is asked for of a team's jobs, always as far ahead as its ring allows. By one thread per team.
template <Product P, bool kUp>
struct Ahead {
  const Experts& p;
  const Jobs<kUp>& jobs;
  char* ring;
  uint64_t *full, *empty;  // [kStages]
  uint64_t* staged;        // `down`
  int next, stage = 0;
  uint32_t round = 0;  // of the ring
  bool of_shared = false, of_half = false;
  StageSource source;

  __device__ void open() {
    const Job job = jobs.at(next);
    of_shared = job.slot < 0;
    of_half = job.half != kWhole;
    if (of_shared) {
      Tile tiles[1];
      tiles_of<kUp>(p, job, tiles);
      source.begin(tiles, shared_matrix<kUp>(p, 0).blocks());
    } else if (kUp && of_half) {
      Tile tiles[1];
      tiles_of<P>(p, job, __ldcg(p.ids + job.slot), tiles);
      source.begin(tiles, p.w1.first.blocks());
    } else {
      Tile tiles[kPair];
      tiles_of<P, kUp>(p, job, __ldcg(p.ids + job.slot), tiles);
      source.begin(tiles, (kUp ? p.w1 : p.w2).first.blocks());
    }
    next += kTeams<kUp>;
  }
  __device__ void fill() {
    char* const to = ring + stage * kStageBytes<kWide>;
    if (of_shared) source.fill<Product::kFp8, kWide, 1>(to, full + stage);
    else if (kUp && of_half) source.fill<P, kWide, 1>(to, full + stage);
    else source.fill<P, kWide, kPair>(to, full + stage);
    if (++stage == kStages) {
      stage = 0;
      ++round;
    }
  }
  // What may be asked for before the row's experts are known.
  __device__ void ask_early() {
    if (next >= jobs.shared) return;
    open();
    for (int i = 0; i < kStages && source.left > 0; ++i) fill();
    if (source.left > 0) prefetch_l2(source.codes[0], static_cast<uint32_t>(source.left * kBlockBytes<Product::kFp8>));
  }
  // All of it. In `down` one stage until the first job's row is there, whose loads would stand behind the others. (The second
  // job's row comes after all of the first was asked for, so the wait is not a phase late.)
  __device__ void ask() {
    for (bool first = true; source.left > 0 || next < jobs.count; first = false) {
      if (source.left == 0) open();
      barrier_wait(empty + stage, round - 1);  // in the first round the phase before the first, which counts as ended
      fill();
      if (!kUp && first && source.left > 0) barrier_wait(staged, 0);
    }
  }
};

// act8 of a row in shared memory, by warps first, first + step, ..., each two groups at a time, all of whose copies are under way
// together. One loop: more instructions than these would come later than the row.
__device__ void stage_row(const bf16* row, int columns, char* to, int first, int step) {
  const int groups = (columns + kBlockK - 1) / kBlockK, half = static_cast<int>(threadIdx.x) / 16 % 2, place = threadIdx.x % 16;
#pragma unroll 1
  for (int group = 2 * first + half; group < groups; group += 2 * step) {
    const int column = group * kBlockK + place * 8;
    copy_async_16_or_zero(to + column * 2, row + min(column, columns - 8), column < columns);
  }
  copy_async_commit();
  copy_async_wait<0>();
  __syncwarp();
#pragma unroll 1
  for (int pair = first; 2 * pair < groups; pair += step) {
    const int group = 2 * pair + half;
    char* const at = to + min(group, groups - 1) * (kBlockK * 2);
    // A lane has two neighbours of each 32, which rounded_place() puts beside each other.
    float v[8];
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float2 two = unpack2(*reinterpret_cast<const uint32_t*>(at + q * 64 + place * 4));
      v[2 * q] = two.x;
      v[2 * q + 1] = two.y;
    }
    uint32_t pairs[4];
    act8_values(v, pairs);
    __syncwarp();  // all have read
    if (group < groups) *reinterpret_cast<uint4*>(at + place * 16) = {pairs[0], pairs[1], pairs[2], pairs[3]};
  }
  __syncwarp();  // before copies to the same places
}

template <Product P, bool kUp>
__global__ void __launch_bounds__(kThreads<kUp>, 1) one_kernel(const __grid_constant__ Experts p, const __grid_constant__ Cut cut) {
  extern __shared__ __align__(128) char dynamic[];
  constexpr int kTeams = cuda::kTeams<kUp>, kWarps = cuda::kWarps<kUp>;
  __shared__ uint64_t full[kTeams][kStages], empty[kTeams][kStages], sent[kTeams], taken[kTeams], staged[kTeams], met;
  __shared__ uint64_t half_sent[kTeams / 2], half_taken[kTeams / 2];
  __shared__ float boxes[kTeams][kShares][kPairRows], halves[kTeams / 2][kTileRows];
  __shared__ int32_t order[kMaxTopk];  // `down`: choices by ascending expert
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, team = warp / kShares, share = warp % kShares;
  const int columns = kUp ? p.D : p.h_stride, stride = few_stride((columns + kBlockK - 1) / kBlockK);
  char* const rows = dynamic + kTeams * kStages * kStageBytes<kWide>;  // `up`: x; `down`: h of each team's job
  float* const results = reinterpret_cast<float*>(rows + kTeams * stride);  // `down`: [units][k + 1][32]
  if (lane == 0 && warp < kTeams) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&full[warp][i], 1);
      barrier_init(&empty[warp][i], kShares * 32);
    }
    barrier_init(&sent[warp], 32);
    barrier_init(&taken[warp], 32);
    barrier_init(&staged[warp], kShares * 32);
    barrier_init(&half_sent[warp / 2], 32);
    barrier_init(&half_taken[warp / 2], 32);
    if (warp == 0) barrier_init(&met, kWarps * 32);
    barriers_known_to_copies();
  }
  __syncthreads();
  const Jobs<kUp> jobs(p, cut);
  if (warp >= kWarps) {
    fewer_registers<kAskRegisters<kUp>>();
    const int its = warp - kWarps;
    if (its >= kTeams || lane > 0) return;
    Ahead<P, kUp> ahead{.p = p, .jobs = jobs, .ring = dynamic + its * kStages * kStageBytes<kWide>, .full = full[its], .empty = empty[its],
                        .staged = staged + its, .next = its, .source = {}};
    // `down` comes when all blocks of `up` have gone on from what chose the experts.
    if (kUp) {
      ahead.ask_early();
      previous_done();
    }
    ahead.ask();
    return;
  }
  more_registers<kMultiplyRegisters<kUp>>();
  if constexpr (kUp) {
    wait_for_previous_first();
    stage_row(p.raw, p.D, rows, warp, kWarps);
    barrier_arrive(&met);
    barrier_wait(&met, 0);
  } else if (warp == 0) {
    const int id = lane < p.k ? __ldcg(p.ids + lane) : 0;
    int place = 0;
    for (int o = 0; o < p.k; ++o) {
      const int other = __shfl_sync(~0u, id, o);
      place += other < id || (other == id && o < lane);
    }
    if (lane < p.k) order[place] = lane;
  }

  const char* const ring = dynamic + team * kStages * kStageBytes<kWide>;
  int stages = 0, half_jobs = 0;  // behind
  for (int i = team, round = 0; i < jobs.count; i += kTeams, ++round) {
    const Job job = jobs.at(i);
    const bool of_shared = job.slot < 0;
    // The other warp has done with the last job.
    if (round > 0 && share == 1) barrier_wait(&taken[team], static_cast<uint32_t>(round - 1));
    char* const row = kUp ? rows : rows + team * stride;
    if constexpr (!kUp) {
      const bf16* const h = p.h + static_cast<int64_t>(of_shared ? p.k : job.slot) * p.h_stride;
      if (round == 0) wait_for_previous();
      stage_row(h, of_shared ? p.shared_I : p.I, row, share, kShares);
      barrier_arrive(&staged[team]);
      barrier_wait(&staged[team], static_cast<uint32_t>(round));
    }
    const char* const x[1] = {row + lane / 8 * 16};  // for all of eight columns
    const auto multiply = [&]<Product Q, int Tiles>(const Tile (&tiles)[Tiles], int blocks) {
      float total[Tiles][1][4] = {};
      for (int k = 0; k < blocks; k += kStageBlocks<Q, kWide, Tiles>, ++stages) {
        barrier_wait(&full[team][stages % kStages], static_cast<uint32_t>(stages / kStages));
        multiply_stage<Q, kShares, kWide>(tiles, share, k, blocks, ring + stages % kStages * kStageBytes<kWide>, x, total,
                                          [&] { barrier_arrive(&empty[team][stages % kStages]); });
      }
      if (lane % 4 != 0) return;
#pragma unroll
      for (int m = 0; m < Tiles; ++m) {
        boxes[team][share][m * kTileRows + lane / 4] = total[m][0][0];
        boxes[team][share][m * kTileRows + lane / 4 + 8] = total[m][0][2];
      }
    };
    float scale = 1.0f, weight = 1.0f;
    if (of_shared) {
      Tile tiles[1];
      tiles_of<kUp>(p, job, tiles);
      scale = shared_matrix<kUp>(p, job.half).global_scale;
      multiply.template operator()<Product::kFp8>(tiles, shared_matrix<kUp>(p, 0).blocks());
    } else if (kUp && job.half != kWhole) {
      const int expert = __ldcg(p.ids + job.slot);
      Tile tiles[1];
      tiles_of<P>(p, job, expert, tiles);
      scale = cuda::at(job.half == 0 ? p.w1 : p.w3, expert).global_scale;
      weight = __ldcg(p.weights + job.slot);
      multiply.template operator()<P>(tiles, p.w1.first.blocks());
    } else {
      const int expert = __ldcg(p.ids + job.slot);
      Tile tiles[kPair];
      tiles_of<P, kUp>(p, job, expert, tiles);
      scale = cuda::at(kUp ? (lane < kTileRows ? p.w1 : p.w3) : p.w2, expert).global_scale;
      if (kUp) weight = __ldcg(p.weights + job.slot);
      multiply.template operator()<P>(tiles, (kUp ? p.w1 : p.w2).first.blocks());
    }

    // The second share to the first. Lane l has row l % 16 of tile l / 16.
    if (share == 1) {
      barrier_arrive(&sent[team]);
      continue;
    }
    barrier_wait(&sent[team], static_cast<uint32_t>(round));
    __syncwarp();
    const float sum = boxes[team][0][lane] + boxes[team][1][lane];
    __syncwarp();
    barrier_arrive(&taken[team]);
    const float value = round_bf16(sum * scale);
    if constexpr (kUp) {
      float other = __shfl_down_sync(~0u, value, kTileRows);  // of w3
      if (job.half != kWhole) {
        // Two teams have the tiles of w1 and w3.
        const int pair = team / 2;
        if (job.half == 1) {
          if (half_jobs > 0) barrier_wait(&half_taken[pair], static_cast<uint32_t>(half_jobs - 1));
          if (lane < kTileRows) halves[pair][lane] = value;
          barrier_arrive(&half_sent[pair]);
        } else {
          barrier_wait(&half_sent[pair], static_cast<uint32_t>(half_jobs));
          other = halves[pair][lane % kTileRows];
          barrier_arrive(&half_taken[pair]);
        }
        ++half_jobs;
      }
      const int at = job.unit * kTileRows + lane;
      if (lane < kTileRows && job.half != 1 && at < (of_shared ? p.shared_I : p.I)) {
        p.h[static_cast<int64_t>(of_shared ? p.k : job.slot) * p.h_stride + at] = to_bf16(swiglu(value, other, p.limit) * weight);
      }
    } else {
      float* const to = results + (i / (p.k + 2) * (p.k + 1) + (of_shared ? p.k : job.slot)) * kPairRows + max(job.half, 0) * kTileRows;
      if (job.half == kWhole || lane < kTileRows) to[lane] = value;
    }
  }
  if constexpr (!kUp) {
    barrier_arrive(&met);
    // Experts by ascending number, then the shared one.
    for (int u = warp; u < jobs.count / (p.k + 2); u += kWarps) {
      barrier_wait(&met, 0);
      const int at = (static_cast<int>(blockIdx.x) + u * static_cast<int>(gridDim.x)) * kPairRows + lane;
      const float* const from = results + u * (p.k + 1) * kPairRows + lane;
      float sum = 0.0f;
      for (int j = 0; j < p.k; ++j) sum += from[order[j] * kPairRows];
      if (at < p.D) p.y[at] = to_bf16(sum + from[p.k * kPairRows]);
    }
  }
}

template <bool kUp>
int shared_bytes(const Experts& p, const Cut& cut) {
  const int ring = kTeams<kUp> * kStages * kStageBytes<kWide>, row = few_stride(ceil_div(kUp ? p.D : p.h_stride, kBlockK));
  return ring + (kUp ? row : kTeams<kUp> * row + cut.most_units * (p.k + 1) * kPairRows * 4);
}

Cut cut_up(const Experts& p) { return {.routed_units = ceil_div(p.I, kTileRows), .shared_units = ceil_div(p.shared_I, kTileRows), .most_units = 0}; }
Cut cut_down(const Experts& p) {
  const int units = ceil_div(p.D, kPairRows);
  return {.routed_units = units, .shared_units = units, .most_units = ceil_div(units, kBlocks<false>)};
}

template <Product P, bool kUp>
Status launch(OpContext& ctx, const Experts& p, const Cut& cut) {
  const int bytes = shared_bytes<kUp>(p, cut);
  DSV4_TRY(allow_shared(one_kernel<P, kUp>, bytes));
  // Two jobs each at least, as those of the shared expert come in twos.
  const int blocks = std::min(kBlocks<kUp>, kUp ? cut.jobs(p.k) / 2 : cut.routed_units);
  return enqueue(ctx, kUp ? "up_one_kernel" : "down_one_kernel", one_kernel<P, kUp>, static_cast<unsigned>(blocks), kThreads<kUp>,
                 static_cast<size_t>(bytes), p, cut);
}

template <Product P>
Status launch_both(OpContext& ctx, const Experts& p) {
  DSV4_TRY((launch<P, true>(ctx, p, cut_up(p))));
  return launch<P, false>(ctx, p, cut_down(p));
}

}  // namespace

bool fits_one_row(const Experts& p) {
  constexpr int kOwnBytes = 5120;  // more than the kernel's own arrays
  const Cut up = cut_up(p);
  return p.T == 1 && p.D % 8 == 0 && p.I % 8 == 0 && p.shared_I % 8 == 0 &&
         3 * up.shared_units <= up.jobs(p.k) &&  // else a block's jobs of the shared expert could be more than its share
         std::max(shared_bytes<true>(p, up), shared_bytes<false>(p, cut_down(p))) + kOwnBytes <= kMaxSharedBytes;
}

Status experts_one(OpContext& ctx, const Experts& p, Product product) {
  switch (product) {
    case Product::kMxfp4: return launch_both<Product::kMxfp4>(ctx, p);
    case Product::kNvfp4: return launch_both<Product::kNvfp4>(ctx, p);
    default: return launch_both<Product::kFp8>(ctx, p);
  }
}

}  // namespace dsv4::cuda
