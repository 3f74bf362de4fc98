// The experts of few tokens, in tasks of up to 8 or 16 of them. Two kernels, each a block per processor that stays:
//   up    w1 and w3, clamp, SwiGLU, routing weight; h as it is
//   down  act8 of h, w2, BF16 per expert
// All rows of all tasks stand in one line, in units of two tiles of 16 rows (w1 and w3, or two of w2), and every block
// has an equal share of the work. A team of two warps takes a unit, each one share of K; weights come through a ring of
// each team (device/stream.cuh), which warps that do nothing else keep full over the borders of units and tasks; tokens
// lie in shared memory whole, of as many tasks as there is room for.
// With very few rows `up` makes the plan and rounds its input itself, and in `down` the last warp to finish a unit's rows
// of the output adds the experts up: no other kernel is needed.
#include <algorithm>

#include "backends/cuda/device/barrier.cuh"
#include "backends/cuda/device/experts.cuh"
#include "backends/cuda/device/quantise.cuh"
#include "backends/cuda/device/stream.cuh"

namespace dsv4::cuda {
namespace {

constexpr int kWarps = 16;                // that multiply
constexpr int kTeams = kWarps / kShares;  // of neighbouring warps, one per share
constexpr int kStages = 2;                // of a team's ring
// A warp per team asks for its weights: one that asks for two teams keeps them waiting for each other.
constexpr int kThreads = (kWarps + kTeams) * 32;
// Of the 80 per thread that a block of so many gets.
constexpr int kMultiplyRegisters = 104, kAskRegisters = 32;
constexpr int kMostPairs = 32;  // of a plan that blocks make for themselves
constexpr int kOwnTask = 8;     // tokens of its tasks at most

// How the work is shared out. Costs in parts of the time that a block of two tiles takes.
struct Shares {
  int32_t routed_units, shared_units;           // of a task
  int32_t many_cost, routed_cost, shared_cost;  // of a unit: of an expert with more than 8 tokens, with fewer, of the shared one
  int32_t border_cost;                          // from the last routed task to the shared ones
  int32_t shared_tasks;                         // the last ones; 0 where the shared expert has kernels of its own
  int32_t late_blocks, late_cost;               // the last blocks wait for the shared expert's kernel: how many, and how long
};

// Of a block of two tiles. Measured, as the others: by blocks that came late.
constexpr int block_cost(Product product) { return product == Product::kMxfp4 ? 9 : 13; }
// Of an expert with more than 8 tokens.
constexpr int many_block_cost(Product product) { return product == Product::kMxfp4 ? 11 : 15; }
// Of the shared expert's, by a kernel that has all tokens of its tasks at once, where each warp's own speed decides, and
// by others.
constexpr int shared_block_cost(bool raw) { return raw ? 18 : 16; }
// The shared expert's tokens find no room beside others': all warps wait for each other and for them.
constexpr int kBorderCost = 1400;
// Of a block of K in the shared expert's kernel.
template <int N>
constexpr int kLateCost = N == 8 ? 400 : 200;

// A plan for the few pairs of tokens and experts.
struct OwnPlan {
  int32_t order[kMostPairs];  // pairs of each token by ascending expert
  int32_t expert[kMostPairs], count[kMostPairs], pairs[kMostPairs * kOwnTask];  // by task
  int32_t tasks;
};

// By one warp, a lane per pair.
__device__ void make_own_plan(const Experts& p, OwnPlan& own) {
  const int lane = threadIdx.x % 32, n = p.T * p.k;
  const int id = lane < n ? __ldcg(p.ids + lane) : -1 - lane;
  const uint32_t same = __match_any_sync(~0u, id), before = (1u << lane) - 1;
  const int place = __popc(same & before), begin = place / kOwnTask * kOwnTask;
  const uint32_t leaders = __ballot_sync(~0u, lane < n && place == begin);
  // The lane whose pair is the first of this one's task; tasks in order of these.
  const int leader = begin == 0 ? __ffs(static_cast<int>(same)) - 1 : static_cast<int>(__fns(same, 0, begin + 1));
  const int task = __popc(leaders & ((1u << leader) - 1));
  if (lane < n) {
    own.pairs[task * kOwnTask + place - begin] = lane;
    if (lane == leader) {
      own.expert[task] = id;
      own.count[task] = min(kOwnTask, __popc(same) - begin);
    }
  }
  const int row = lane / p.k * p.k;
  int by_id = 0;
  for (int o = 0; o < p.k; ++o) {
    const int other = __shfl_sync(~0u, id, min(row + o, 31));
    by_id += other < id || (other == id && row + o < lane);
  }
  if (lane < n) own.order[row + by_id] = lane;
  if (lane == 0) own.tasks = __popc(leaders);
}

// What a block multiplies with: the tokens of neighbouring tasks, as many tasks as have N tokens together.
constexpr int kGroupTasks = 8;
template <int N>
struct Tokens {
  int32_t tasks, count, end;  // how many tasks and tokens; the first unit behind
  // Of a task: its first unit; its expert, -1: the shared one; its tokens; the global scales of w1 and w3, or of w2 twice.
  int32_t begin[kGroupTasks], expert[kGroupTasks], first[kGroupTasks], counts[kGroupTasks];
  float scale[kGroupTasks][kPair];
  int32_t pair[N];
  float weight[N];
};

template <bool kUp>
__device__ Matrix first_matrix(const Experts& p, int expert) {
  if (expert < 0) return kUp ? p.shared_w1 : p.shared_w2;
  return at(kUp ? p.w1 : p.w2, expert);
}
template <bool kUp>
__device__ Matrix second_matrix(const Experts& p, int expert) {
  if (expert < 0) return kUp ? p.shared_w3 : p.shared_w2;
  return at(kUp ? p.w3 : p.w2, expert);
}
// Tile m of unit `unit` of a task; one past the last is another one, whose rows nobody wants.
template <Product P, bool kUp>
__device__ void tiles_of(const Experts& p, int expert, int unit, Tile (&tiles)[kPair]) {
  const Matrix m[kPair] = {first_matrix<kUp>(p, expert), second_matrix<kUp>(p, expert)};
  for (int i = 0; i < kPair; ++i) {
    const int tile = kUp ? unit : unit * kPair + i;
    tiles[i] = tile_of<P>(m[i], tile < m[i].tiles() ? tile : 0);
  }
}

// The line of units: of every routed task, then of the tasks of the shared expert.
struct Line {
  const Experts& p;
  const Shares& s;
  const OwnPlan& own;
  int routed, many;  // tasks; of those the first, of experts with more than 8 tokens

  __device__ Line(const Experts& experts, const Shares& shares, const OwnPlan& plan)
      : p(experts), s(shares), own(plan),
        routed(experts.raw ? plan.tasks : __ldcg(&experts.plan.count->tasks) - shares.shared_tasks),
        many(experts.raw ? 0 : __ldcg(&experts.plan.count->many)) {}
  __device__ int units() const { return routed * s.routed_units + s.shared_tasks * s.shared_units; }
  __device__ int task_of(int unit) const {
    const int behind = unit - routed * s.routed_units;
    return behind < 0 ? unit / s.routed_units : routed + behind / s.shared_units;
  }
  __device__ int begin_of(int task) const {
    return task < routed ? task * s.routed_units : routed * s.routed_units + (task - routed) * s.shared_units;
  }
  __device__ int expert_of(int task) const {
    if (task >= routed) return -1;
    return p.raw ? own.expert[task] : __ldcg(&p.plan.tasks[task].expert);
  }
  // The first unit of block `block`.
  __device__ int share(int block) const {
    const int blocks = gridDim.x, on_time = blocks - s.late_blocks, of_many = many * s.routed_units * s.many_cost;
    const int of_routed = of_many + (routed - many) * s.routed_units * s.routed_cost, before_shared = of_routed + s.border_cost,
              all = before_shared + s.shared_tasks * s.shared_units * s.shared_cost;
    const int late_cost = s.late_blocks == 0 ? 0 : min(s.late_cost, all / on_time);
    const float part = static_cast<float>(block) / static_cast<float>(blocks);
    const int cost = static_cast<int>(static_cast<float>(all + s.late_blocks * late_cost) * part) - max(0, block - on_time) * late_cost;
    if (block == blocks) return units();
    const int unit = cost <= of_many     ? (cost + s.many_cost - 1) / s.many_cost
                     : cost <= of_routed ? many * s.routed_units + (cost - of_many + s.routed_cost - 1) / s.routed_cost
                                         : routed * s.routed_units + (max(0, cost - before_shared) + s.shared_cost - 1) / s.shared_cost;
    return min(unit, units());
  }
};

// The row of the input of a pair of token and expert.
__device__ int row_of(const Experts& p, int pair) {
  const int of_shared = pair - p.T * p.k;
  return of_shared < 0 ? pair / p.k : of_shared;
}

// The tasks from that of unit `from` on whose tokens fit together. By one warp, a lane per task, then per token.
template <int N, bool kUp>
__device__ void find_tokens(const Line& line, int from, int last, Tokens<N>& tokens) {
  const Experts& p = line.p;
  const int lane = threadIdx.x, task = line.task_of(from) + lane, behind = line.begin_of(task);
  const bool present = lane < kGroupTasks && task < line.routed + line.s.shared_tasks && (lane == 0 || behind < last);
  int expert = -1, count = 0, first = 0;  // first: of its list, or the row
  if (present) {
    if (!p.raw) {
      const int4 raw = __ldcg(reinterpret_cast<const int4*>(p.plan.tasks + task));
      expert = raw.x;
      first = raw.y;
      count = raw.z;
    } else if (task < line.routed) {
      expert = line.expert_of(task);
      count = line.own.count[task];
    } else {
      count = p.T;
    }
  }
  int through = count;
  for (int o = 1; o < kGroupTasks; o *= 2) {
    const int other = __shfl_up_sync(~0u, through, o);
    if (lane >= o) through += other;
  }
  const uint32_t fitting = __ballot_sync(~0u, present && through <= N);
  // Tasks one after the other from the first on.
  const int tasks = __ffs(static_cast<int>(~fitting)) - 1, all = __shfl_sync(~0u, through, tasks - 1);
  if (lane < tasks) {
    tokens.begin[lane] = behind;
    tokens.expert[lane] = expert;
    tokens.first[lane] = through - count;
    tokens.counts[lane] = count;
    tokens.scale[lane][0] = first_matrix<kUp>(p, expert).global_scale;
    tokens.scale[lane][1] = second_matrix<kUp>(p, expert).global_scale;
  }
  if (lane == tasks - 1) {
    tokens.tasks = tasks;
    tokens.count = all;
    tokens.end = min(last, behind + (task < line.routed ? line.s.routed_units : line.s.shared_units));
  }
  // Token `lane` is of the task whose tokens reach beyond it.
  int mine = 0;
  for (int i = 0; i + 1 < tasks; ++i) mine += __shfl_sync(~0u, through, i) <= lane;
  const int its_expert = __shfl_sync(~0u, expert, mine), its_first = __shfl_sync(~0u, first, mine);
  const int in_task = lane - (__shfl_sync(~0u, through, mine) - __shfl_sync(~0u, count, mine)), its_task = __shfl_sync(~0u, task, mine);
  if (lane < all) {
    int pair = p.T * p.k + its_first + in_task;
    if (its_expert >= 0) {
      pair = p.raw ? line.own.pairs[its_task * kOwnTask + in_task]
                   : __ldcg(p.plan.lists + static_cast<int64_t>(its_expert) * p.T + its_first + in_task);
    }
    tokens.pair[lane] = pair;
    if (kUp) tokens.weight[lane] = its_expert < 0 ? 1.0f : p.weights[pair];
  }
}

// What is asked for of a team's units, always as far ahead as its ring allows. By one thread per team.
template <Product P, int Wide, bool kUp>
struct Ahead {
  const Line& line;
  char* ring;
  uint64_t *full, *empty;  // [kStages]
  int unit, last, expert = 0, stage = 0;
  uint32_t round = 0;  // of the ring
  StageSource source;

  __device__ void open() {
    if (unit >= last) return;
    const int task = line.task_of(unit), of_task = unit - line.begin_of(task);
    expert = line.expert_of(task);
    Tile tiles[kPair];
    if (expert < 0) tiles_of<Product::kFp8, kUp>(line.p, expert, of_task, tiles);
    else tiles_of<P, kUp>(line.p, expert, of_task, tiles);
    source.begin(tiles, first_matrix<kUp>(line.p, expert).blocks());
    unit += kTeams;
  }
  __device__ void fill() {
    char* const to = ring + stage * kStageBytes<Wide>;
    if (expert < 0) source.fill<Product::kFp8, Wide>(to, full + stage);
    else source.fill<P, Wide>(to, full + stage);
    if (++stage == kStages) {
      stage = 0;
      ++round;
    }
    if (source.left == 0) open();
  }
  __device__ void ask() {
    open();
    while (source.left > 0) {
      barrier_wait(empty + stage, round - 1);  // in the first round the phase before the first, which counts as ended
      fill();
    }
  }
};

template <int N>
constexpr int kOutbox = kPair * N / 8 * 2 * 32;  // floats that a warp hands to its neighbour

template <int N>
constexpr int fixed_bytes(int blocks) {
  return kWarps * kOutbox<N> * 4 + N * few_stride(blocks);
}

// act8 of `count` rows in shared memory, `stride` bytes apart, by warps first, first + warps, ...
template <class RowOf>
__device__ void stage_act8(int count, int columns, char* rows, int stride, int first, int warps, const RowOf& row_of) {
  const int blocks = (columns + kBlockK - 1) / kBlockK;
  constexpr int kInFlight = 4;
  for (int base = first; base < count * blocks; base += kInFlight * warps) {
    float v[kInFlight][4];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int at = min(base + i * warps, count * blocks - 1);
      load_group(row_of(at / blocks), columns, at % blocks, v[i]);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int at = base + i * warps;
      if (at >= count * blocks) break;
      store_rounded(rows + at / blocks * stride + at % blocks * (kBlockK * 2), act8_four(v[i]));
    }
  }
}

// Units of the output of `down`.
__host__ __device__ constexpr int output_units(int D) { return (D + kPair * kTileRows - 1) / (kPair * kTileRows); }

// The experts of all tokens for the rows of one unit, by the warp that is the last of `arrivals` to finish its part.
__device__ void add_up(const Experts& p, const OwnPlan& own, int unit, int arrivals) {
  const int lane = threadIdx.x % 32, row = unit * kPair * kTileRows + lane;
  __threadfence();
  __syncwarp();
  int before = 0;
  if (lane == 0) before = atomicAdd(p.finished + unit, 1);
  if (__shfl_sync(~0u, before, 0) != arrivals - 1) return;
  __threadfence();
  if (row >= p.D) return;
  const auto value = [&](int pair) {
    const unsigned short bits = __ldcg(reinterpret_cast<const unsigned short*>(p.out) + static_cast<int64_t>(pair) * p.D + row);
    return bits_to_float(static_cast<uint32_t>(bits) << 16);
  };
  for (int t = 0; t < p.T; ++t) {
    float sum = 0.0f;
#pragma unroll 8
    for (int j = 0; j < p.k; ++j) sum += value(own.order[t * p.k + j]);
    p.y[static_cast<int64_t>(t) * p.D + row] = to_bf16(sum + value(p.T * p.k + t));
  }
}

template <Product P, int N, int Wide, bool kUp>
__global__ void __launch_bounds__(kThreads, 1) few_kernel(const __grid_constant__ Experts p, const __grid_constant__ Shares s, Part part) {
  extern __shared__ __align__(128) char dynamic[];
  __shared__ uint64_t sent[kWarps], taken[kWarps], full[kTeams][kStages], empty[kTeams][kStages], met, planned;
  __shared__ Tokens<N> tokens;
  __shared__ OwnPlan own;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4, team = warp / kShares, share = warp % kShares;
  const int stride_blocks = kUp ? (p.D + kBlockK - 1) / kBlockK : p.h_stride / kBlockK, stride = few_stride(stride_blocks);
  float* const outboxes = reinterpret_cast<float*>(dynamic + kTeams * kStages * kStageBytes<Wide>);
  char* const rows = reinterpret_cast<char*>(outboxes + kWarps * kOutbox<N>);
  if (lane == 0 && warp < kWarps) {
    barrier_init(&sent[warp], 32);
    barrier_init(&taken[warp], 32);
    if (share == 0) {
      for (int i = 0; i < kStages; ++i) {
        barrier_init(&full[team][i], 1);
        barrier_init(&empty[team][i], kShares * 32);
      }
    }
    if (warp == 0) {
      barrier_init(&met, kWarps * 32);
      barrier_init(&planned, 32);
    }
    barriers_known_to_copies();
  }
  __syncthreads();
  if (warp >= kWarps) {
    fewer_registers<kAskRegisters>();
    if (kUp) begin(part, true);
    if (p.raw) barrier_wait(&planned, 0);
    if (lane > 0) return;
    const Line line(p, s, own);
    const int first = line.share(static_cast<int>(blockIdx.x)), last = line.share(static_cast<int>(blockIdx.x) + 1), its = warp - kWarps;
    Ahead<P, Wide, kUp> ahead{.line = line, .ring = dynamic + its * kStages * kStageBytes<Wide>, .full = full[its], .empty = empty[its],
                              .unit = first + its, .last = last, .source = {}};
    ahead.ask();
    return;
  }
  more_registers<kMultiplyRegisters>();
  // `up`: the next kernel comes when all blocks are past this: what made the plan is done then, so `down` may read it
  // and ask for weights while `up` still runs.
  if (kUp) begin(part, true);
  if (kUp && p.raw) {
    if (blockIdx.x == 0) {
      for (int i = threadIdx.x; i < output_units(p.D); i += kWarps * 32) p.finished[i] = 0;
    }
    // The first warp looks tokens up meanwhile.
    if (warp > 0) stage_act8(p.T, p.D, rows, stride, warp - 1, kWarps - 1, [&](int n) { return p.raw + static_cast<int64_t>(n) * p.D; });
  }
  if (p.raw) {
    if (warp == 0) {
      make_own_plan(p, own);
      barrier_arrive(&planned);
    }
    barrier_wait(&planned, 0);
  }
  const Line line(p, s, own);
  const int first = line.share(static_cast<int>(blockIdx.x)), last = line.share(static_cast<int>(blockIdx.x) + 1);
  // All warps that multiply. Not a named barrier: after one, racecheck takes no other for one.
  auto meet = [&, times = 0u]() mutable {
    barrier_arrive(&met);
    barrier_wait(&met, times++);
  };
  const char* const ring = dynamic + team * kStages * kStageBytes<Wide>;
  // The first warp looks up what the first task's tokens are while the first weights are asked for.
  if (warp == 0) find_tokens<N, kUp>(line, first, last, tokens);
  if (!kUp) begin(part, false);

  int stages = 0, units = 0;  // behind
  for (int from = first, unit = first + team; from < last;) {
    if (from != first) {
      meet();
      if (warp == 0) find_tokens<N, kUp>(line, from, last, tokens);
    }
    meet();
    const int to = tokens.end;
    if constexpr (kUp) {
      if (!p.raw) {
        for (int n = 0; n < tokens.count; ++n) {
          const bf16* x = p.x + static_cast<int64_t>(row_of(p, tokens.pair[n])) * stride_blocks * kBlockK;
          for (int i = threadIdx.x; i < stride_blocks * 16; i += kWarps * 32) copy_async_16(rows + n * stride + i * 16, x + i * 8);
        }
        copy_async_commit();
        copy_async_wait<0>();
      }
    } else {
      for (int i = 0; i < tokens.tasks; ++i) {
        const int columns = tokens.expert[i] < 0 ? p.shared_I : p.I, at = tokens.first[i];
        stage_act8(tokens.counts[i], columns, rows + at * stride, stride, (warp + i) % kWarps, kWarps,
                   [&](int n) { return p.h + static_cast<int64_t>(tokens.pair[at + n]) * p.h_stride; });
      }
    }
    meet();

    int in_group = 0;  // the task of `unit`
    for (; unit < to; unit += kTeams, ++units) {
      while (in_group + 1 < tokens.tasks && unit >= tokens.begin[in_group + 1]) ++in_group;
      const int expert = tokens.expert[in_group], first_token = tokens.first[in_group], count = tokens.counts[in_group];
      const int of_task = unit - tokens.begin[in_group], blocks = first_matrix<kUp>(p, expert).blocks();
      float total[kPair][N / 8][4] = {};
      const auto multiply = [&]<Product Q, int NT>(float (&sums)[kPair][NT][4]) {
        const char* x[NT];
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          const int token = first_token + min(n * 8 + lane % 8, count - 1);
          x[n] = rows + (kUp && p.raw ? row_of(p, tokens.pair[token]) : token) * stride + lane / 8 * 16;
        }
        Tile tiles[kPair];
        tiles_of<Q, kUp>(p, expert, of_task, tiles);
        for (int i = 0; i < blocks; i += kStageBlocks<Q, Wide, kPair>, ++stages) {
          barrier_wait(&full[team][stages % kStages], static_cast<uint32_t>(stages / kStages));
          multiply_stage<Q, kShares, Wide>(tiles, share, i, blocks, ring + stages % kStages * kStageBytes<Wide>, x, sums,
                                           [&] { barrier_arrive(&empty[team][stages % kStages]); });
        }
      };
      if (expert < 0) {
        multiply.template operator()<Product::kFp8>(total);
      } else if (N > 8 && count <= 8) {
        // Half of the columns would be nobody's.
        float sums[kPair][1][4] = {};
        multiply.template operator()<P>(sums);
#pragma unroll
        for (int i = 0; i < kPair * 4; ++i) total[i / 4][0][i % 4] = sums[i / 4][0][i % 4];
      } else {
        multiply.template operator()<P>(total);
      }

      // Each warp of the team gets the other's sums of eight rows of a tile, and adds the second share to the first.
      float* outbox = outboxes + warp * kOutbox<N> + lane;
      if (units > 0) barrier_wait(&taken[warp], static_cast<uint32_t>(units - 1));
#pragma unroll
      for (int i = 0; i < kPair * N / 4; ++i) {
        const float(&of)[4] = total[i / (N / 4)][i / 2 % (N / 8)];
        outbox[i * 32] = share == 0 ? of[2 + i % 2] : of[i % 2];
      }
      barrier_arrive(&sent[warp]);
      const int other = warp ^ 1;
      barrier_wait(&sent[other], static_cast<uint32_t>(units));
      float sum[kPair][N / 4];
#pragma unroll
      for (int i = 0; i < kPair * N / 4; ++i) {
        const float(&of)[4] = total[i / (N / 4)][i / 2 % (N / 8)];
        const float mine = share == 0 ? of[i % 2] : of[2 + i % 2], theirs = outboxes[other * kOutbox<N> + i * 32 + lane];
        sum[i / (N / 4)][i % (N / 4)] = mine + theirs;
      }
      barrier_arrive(&taken[other]);

      const int row_in_tile = g + 8 * share;
#pragma unroll
      for (int i = 0; i < N / 4; ++i) {
        const int n = i / 2 * 8 + 2 * c + i % 2;
        if (n >= count) continue;
        const int64_t pair = tokens.pair[first_token + n];
        const float* scale = tokens.scale[in_group];
        if constexpr (kUp) {
          const int row = of_task * kTileRows + row_in_tile;
          const float h = swiglu(round_bf16(sum[0][i] * scale[0]), round_bf16(sum[1][i] * scale[1]), p.limit);
          if (row < (expert < 0 ? p.shared_I : p.I)) p.h[pair * p.h_stride + row] = to_bf16(h * tokens.weight[first_token + n]);
        } else {
#pragma unroll
          for (int m = 0; m < kPair; ++m) {
            const int row = (of_task * kPair + m) * kTileRows + row_in_tile;
            if (row < p.D) p.out[pair * p.D + row] = to_bf16(sum[m][i] * scale[m]);
          }
        }
      }
      if (!kUp && p.raw) add_up(p, own, of_task, kShares * (line.routed + 1));
    }
    from = to;
  }
  end(part);
}

template <int N>
constexpr int kOwnBytes = sizeof(OwnPlan) + sizeof(Tokens<N>) + (kWarps * 2 + kTeams * kStages * 2 + 2) * 8 + 256;
// Whether rings of such stages fit.
template <int N>
constexpr bool fits(int stage_bytes, int blocks) {
  return kOwnBytes<N> + fixed_bytes<N>(blocks) + kTeams * kStages * stage_bytes <= kMaxSharedBytes;
}

template <Product P, int N, bool kUp>
Status launch(OpContext& ctx, const Experts& p, Part part) {
  constexpr int kRows = kUp ? kTileRows : kPair * kTileRows;
  const int routed_rows = kUp ? p.I : p.D, shared_rows = kUp ? p.shared_I : p.D;
  const int routed_blocks = ceil_div(kUp ? p.D : p.I, kBlockK), shared_blocks = ceil_div(kUp ? p.D : p.shared_I, kBlockK);
  const int blocks = std::max(routed_blocks, shared_blocks);
  Shares s{.routed_units = ceil_div(routed_rows, kRows), .shared_units = ceil_div(shared_rows, kRows),
           .many_cost = (N == 8 ? block_cost(P) : many_block_cost(P)) * routed_blocks,
           .routed_cost = block_cost(P) * routed_blocks, .shared_cost = shared_block_cost(p.raw != nullptr) * shared_blocks,
           .border_cost = part == Part::kAll && !p.raw ? kBorderCost : 0,
           .shared_tasks = part == Part::kAll ? ceil_div(p.T, p.raw ? kOwnTask : N) : 0, .late_blocks = 0, .late_cost = 0};
  if (part == Part::kRouted) {
    s.late_blocks = std::min(shared_kernel_blocks(p, kUp), kProcessors - 1);
    s.late_cost = kLateCost<N> * shared_blocks;
  }
  const bool wide = fits<N>(kStageBytes<4>, blocks);
  const auto kernel = wide ? few_kernel<P, N, 4, kUp> : few_kernel<P, N, 2, kUp>;
  const int bytes = fixed_bytes<N>(blocks) + kTeams * kStages * (wide ? kStageBytes<4> : kStageBytes<2>);
  DSV4_TRY(allow_shared(kernel, bytes));
  return enqueue(ctx, kUp ? "up_few_kernel" : "down_few_kernel", kernel, kProcessors, kThreads, static_cast<size_t>(bytes), p, s, part);
}

template <Product P>
Status launch_tokens(OpContext& ctx, const Experts& p, int per_task, bool is_up, Part part) {
  if (per_task == 8) return is_up ? launch<P, 8, true>(ctx, p, part) : launch<P, 8, false>(ctx, p, part);
  return is_up ? launch<P, 16, true>(ctx, p, part) : launch<P, 16, false>(ctx, p, part);
}

}  // namespace

int few_task_tokens(int blocks) {
  return fits<16>(kStageBytes<2>, blocks) ? 16 : fits<8>(kStageBytes<2>, blocks) ? 8 : 0;
}

bool plans_itself(int64_t T, int64_t k, int64_t D) {
  // Every block rounds its rows and looks through all pairs: with 8 rows that took longer than two more kernels.
  constexpr int64_t kMostRows = 2;
  return T <= kMostRows && T * k <= kMostPairs && few_task_tokens(static_cast<int>(ceil_div<int64_t>(D, kBlockK))) > 0;
}
int64_t finished_counts(int64_t D) { return output_units(static_cast<int>(D)); }

Status experts_few(OpContext& ctx, const Experts& p, Product product, int per_task, bool is_up, Part part) {
  switch (product) {
    case Product::kMxfp4: return launch_tokens<Product::kMxfp4>(ctx, p, per_task, is_up, part);
    case Product::kNvfp4: return launch_tokens<Product::kNvfp4>(ctx, p, per_task, is_up, part);
    default: return launch_tokens<Product::kFp8>(ctx, p, per_task, is_up, part);
  }
}

}  // namespace dsv4::cuda
