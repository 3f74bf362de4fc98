// index_select. One row, or few of short contexts, in one launch: the blocks of a cluster share out the entries of a row,
// score and select. Otherwise scores by the whole GPU first, then a cluster per row that selects.
#include <algorithm>

#include "backends/cuda/core.h"
#include "backends/cuda/device/index_scores.cuh"
#include "backends/cuda/device/index_select.cuh"
#include "backends/cuda/launch/prepare.h"
#include "backends/cuda/ops.h"
#include "base/str.h"
#include "ops/check.h"

namespace dsv4::cuda {
namespace {

constexpr int kScoreThreads = 256, kScoreTiles = kScoreThreads / 128;  // of score_kernel, two blocks per processor
constexpr int kMostChunk = 1024;                                       // entries of its blocks
constexpr int kPlaces = 2;                                             // of keys, for a warpgroup; where rows share keys, 1
constexpr int kPromptRows = 4;                                         // rows of one sequence that share keys
constexpr int kIndexThreads = 512, kIndexTiles = kIndexThreads / 128;  // of index_kernel
constexpr int kFewRows = 16, kFewEntries = 4096;                       // what it takes, and
constexpr int kLongEntries = 65536;                                    // of one row
constexpr int kClusters = 7;                                           // of 16 blocks find room at the same time, on an H200
constexpr int kSelectBlocks = 64;                                      // of select_kernel: a row gets no more from here on
constexpr int kKeysOfBlock = 8192;                                     // unless a block would have more
constexpr int64_t kScoreBytes = int64_t{256} << 20;                    // of scores at one time; longer batches take turns
constexpr int64_t kMaxRows = 65535;                                    // of one grid

__device__ int visible_entries(const IndexSelectArgs& a, int64_t t) {
  return (a.batch.positions[t] + 1) / static_cast<int>(a.ratio);
}
// With one row per sequence both are known without a load.
__device__ bool one_each(const IndexSelectArgs& a) { return a.batch.rows == a.batch.sequences; }
__device__ int sequence_of(const IndexSelectArgs& a, int64_t t) {
  return one_each(a) ? static_cast<int>(t) : a.batch.row_seq[t];
}
// Entries that are older than the batch: no kernel of this step writes their keys.
__device__ int old_entries(const IndexSelectArgs& a, int seq) {
  return a.batch.positions[one_each(a) ? seq : a.batch.seq_begin[seq]] / static_cast<int>(a.ratio);
}

// Rows that see no more than topk entries take all of them.
__device__ void select_all(int visible, int topk, int32_t* out) {
  for (int i = threadIdx.x; i < topk; i += blockDim.x) out[i] = i < visible ? i : -1;
}

struct Scores {
  int64_t first_row, rows;
  int64_t stride;  // of a row's scores, a multiple of 64
  int chunk;       // entries of a block
  float* data;     // [rows, stride]; undefined for rows that take all their entries
};

// Shared memory of `rows` rows with their queries and `warpgroups` with S places of keys each.
template <int E, int S>
struct ScoreMemory {
  char *queries, *keys;
  float* weights;  // [rows, groups * 64]
  uint64_t* barriers;
  __device__ ScoreMemory(char* shared, int rows, int groups, int warpgroups)
      : queries(shared),
        keys(queries + rows * index_query_bytes<E>(groups)),
        weights(reinterpret_cast<float*>(keys + warpgroups * KeyPlaces<E, S>::kBytes)),
        barriers(reinterpret_cast<uint64_t*>(weights + rows * groups * kIndexTile)) {}
  // A multiple of 16.
  __host__ __device__ static int bytes(int rows, int groups, int warpgroups) {
    return rows * groups * (index_query_bytes<E>(1) + kIndexTile * 4) +
           warpgroups * (KeyPlaces<E, S>::kBytes + KeyPlaces<E, S>::kBarriers * 8);
  }
};

// R rows, or fewer at the end, and one chunk of entries.
template <int E, int R, int S>
__global__ void __launch_bounds__(kScoreThreads, 2) score_kernel(const __grid_constant__ IndexSelectArgs a,
                                                                 const __grid_constant__ Scores p) {
  extern __shared__ __align__(1024) char index_shared[];
  constexpr int kStep = kScoreTiles * kIndexTile;
  const int groups = index_head_groups(a.heads);
  const ScoreMemory<E, S> memory(index_shared, R, groups, kScoreTiles);
  KeyPlaces<E, S> places(memory.keys, memory.barriers);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * R, t = p.first_row + at;
  const int rows = static_cast<int>(min(static_cast<int64_t>(R), p.rows - at)), topk = static_cast<int>(a.topk);
  const int chunk_begin = static_cast<int>(blockIdx.y) * p.chunk, mine = chunk_begin + static_cast<int>(threadIdx.x) / 128 * kIndexTile;
  // Rows from r on that share a sequence, and so keys; where their entries of this chunk end.
  int seq = 0, next = 0, end = 0;
  const auto begin_run = [&](int r) {
    seq = sequence_of(a, t + r);
    for (next = r + 1; next < rows && sequence_of(a, t + next) == seq;) ++next;
    const int visible = visible_entries(a, t + next - 1);
    end = visible > topk ? min(chunk_begin + p.chunk, visible) : 0;
  };
  int coming = mine;  // the leader's: entries from here on have not been asked for
  const auto bring = [&](int below) {
    for (; coming < end && min(coming + kIndexTile, end) <= below && places.has_place(); coming += kStep) {
      places.fill(a, seq, coming, end);
    }
  };
  begin_run(0);
  if (places.leader()) {
    places.begin();
    bring(old_entries(a, seq));
  }
  wait_for_previous();
  // The last row sees most, unless another sequence begins.
  if (next == rows && chunk_begin >= end) return;
  if (places.leader()) bring(end);
  for (int r = 0; r < rows; ++r) {
    load_queries<E>(a, t + r, index_scale<E>(a.heads), memory.queries + r * index_query_bytes<E>(groups), memory.weights + r * groups * kIndexTile);
  }
  __syncthreads();
  for (int r = 0; r < rows; r = next) {
    if (r > 0) {
      begin_run(r);
      coming = mine;
      if (places.leader()) bring(end);
    }
    for (int entry = mine; entry < end; entry += kStep) {
      uint32_t keys[E / 16][4];
      places.take(keys);
      if (places.leader()) bring(end);
      for (int i = r; i < next; ++i) {
        const int visible = visible_entries(a, t + i);
        if (visible <= topk || entry >= visible) continue;
        const float2 both = index_scores<E>(keys, memory.queries + i * index_query_bytes<E>(groups),
                                            memory.weights + i * groups * kIndexTile, groups);
        const int to = entry + score_entry();
        if (stores_score() && to < visible) p.data[(at + i) * p.stride + to] = score_of(both);
      }
    }
  }
}

// A cluster per row.
__global__ void __launch_bounds__(kMostSelectWarps * 32) select_kernel(const __grid_constant__ IndexSelectArgs a,
                                                               const __grid_constant__ Scores p) {
  extern __shared__ __align__(1024) char index_shared[];
  Selection& selection = *reinterpret_cast<Selection*>(index_shared);
  uint32_t* const row_keys = reinterpret_cast<uint32_t*>(index_shared + sizeof(Selection));
  const int rank = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  const int64_t t = p.first_row + blockIdx.y;
  const int visible = visible_entries(a, t), topk = static_cast<int>(a.topk);
  int32_t* out = a.selected + t * topk;
  if (visible > topk) begin_selection(selection, blocks);
  wait_for_previous();
  if (rank == 0 && threadIdx.x == 0) a.selected_count[t] = min(topk, visible);
  if (visible <= topk) {
    if (rank == 0) select_all(visible, topk, out);
    return;
  }
  const int per = ((visible + blocks - 1) / blocks + 3) / 4 * 4, begin = min(rank * per, visible), n = min(per, visible - begin);
  const float* scores = p.data + static_cast<int64_t>(blockIdx.y) * p.stride + begin;
  constexpr int kTogether = 4;  // loads on their way
  const int step = static_cast<int>(blockDim.x) * 4;
  for (int i = threadIdx.x * 4; i < n; i += kTogether * step) {
    float4 v[kTogether];
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      if (i + k * step < n) v[k] = *reinterpret_cast<const float4*>(scores + i + k * step);
    }
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      if (i + k * step >= n) continue;
      *reinterpret_cast<uint4*>(row_keys + i + k * step) = {ordered(v[k].x), ordered(v[k].y), ordered(v[k].z), ordered(v[k].w)};
    }
  }
  __syncthreads();
  select_best(row_keys, n, begin, topk, rank, blocks, selection, out);
}

// Both at once: a cluster per row.
template <int E, int S>
__global__ void __launch_bounds__(kIndexThreads, 1) index_kernel(const __grid_constant__ IndexSelectArgs a) {
  extern __shared__ __align__(1024) char index_shared[];
  constexpr int kStep = kIndexTiles * kIndexTile;
  const int groups = index_head_groups(a.heads);
  const ScoreMemory<E, S> memory(index_shared, 1, groups, kIndexTiles);
  Selection& selection = *reinterpret_cast<Selection*>(index_shared + memory.bytes(1, groups, kIndexTiles));
  static_assert(sizeof(Ranking) <= sizeof(Selection) && kIndexThreads == kMostSelectWarps * 32);
  Ranking& ranking = *reinterpret_cast<Ranking*>(&selection);  // in its place
  uint32_t* const row_keys = reinterpret_cast<uint32_t*>(&selection + 1);
  KeyPlaces<E, S> places(memory.keys, memory.barriers);
  const int rank = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  const int64_t t = blockIdx.y;
  const int visible = visible_entries(a, t), topk = static_cast<int>(a.topk), seq = sequence_of(a, t);
  int32_t* out = a.selected + t * topk;
  const int per = ((visible + blocks - 1) / blocks + 7) / 8 * 8, begin = min(rank * per, visible), end = min(begin + per, visible);
  const int mine = begin + static_cast<int>(threadIdx.x) / 128 * kIndexTile;
  int coming = mine;  // the leader's: entries from here on have not been asked for
  const auto bring = [&](int below) {
    for (; coming < end && min(coming + kIndexTile, end) <= below && places.has_place(); coming += kStep) {
      places.fill(a, seq, coming, end);
    }
  };
  const bool ranked = is_ranked(visible, per);
  const float scale = index_scale<E>(a.heads);
  if (visible > topk) {
    if (ranked) {
      begin_ranking(ranking, visible, blocks);
      if (threadIdx.x < 4 && end > begin) row_keys[(end - begin - 1) / 4 * 4 + threadIdx.x] = 0;
    } else begin_selection(selection, blocks);
    if (places.leader()) {
      places.begin();
      bring(old_entries(a, seq));
    }
  }
  wait_for_previous();
  if (rank == 0 && threadIdx.x == 0) a.selected_count[t] = min(topk, visible);
  if (visible <= topk) {
    if (rank == 0) select_all(visible, topk, out);
    return;
  }
  if (places.leader()) bring(end);
  load_queries<E>(a, t, scale, memory.queries, memory.weights);
  __syncthreads();
  for (int entry = mine; entry < end; entry += kStep) {
    uint32_t keys[E / 16][4];
    places.take(keys);
    if (places.leader()) bring(end);
    const float2 both = index_scores<E>(keys, memory.queries, memory.weights, groups);
    const int to = entry + score_entry();
    if (stores_score() && to < end) row_keys[to - begin] = ordered(score_of(both));
  }
  __syncthreads();
  if (ranked) select_ranked(row_keys, end - begin, begin, per, visible, topk, rank, blocks, ranking, out);
  else select_best(row_keys, end - begin, begin, topk, rank, blocks, selection, out);
}

template <int E, int S>
Status launch_index(OpContext& ctx, const IndexSelectArgs& a, int64_t max_entries) {
  const unsigned blocks = a.batch.rows <= kClusters ? kMaxCluster : kMaxCluster / 2;
  const auto kernel = index_kernel<E, S>;
  const int64_t bytes = ScoreMemory<E, S>::bytes(1, index_head_groups(a.heads), kIndexTiles) +
                        static_cast<int64_t>(sizeof(Selection)) + ceil_div<int64_t>(max_entries, blocks * 8) * 8 * 4;
  DSV4_TRY(allow_shared(kernel, static_cast<int>(bytes)));
  DSV4_TRY(allow_clusters(kernel));
  return enqueue_clusters(ctx, "index_kernel", kernel, dim3(blocks, static_cast<unsigned>(a.batch.rows)), blocks, kIndexThreads,
                          static_cast<size_t>(bytes), a);
}

template <int E, int R, int S>
Status launch_scores(OpContext& ctx, const IndexSelectArgs& a, Scores s, int64_t max_entries) {
  const int64_t row_groups = ceil_div<int64_t>(s.rows, R);
  // Two blocks for each processor where there is work for as many.
  const int64_t share = ceil_div(max_entries * row_groups, int64_t{2} * kProcessors);
  s.chunk = static_cast<int>(std::clamp<int64_t>(ceil_div<int64_t>(share, kScoreTiles * kIndexTile) * kScoreTiles * kIndexTile,
                                                 kScoreTiles * kIndexTile, kMostChunk));
  const int bytes = ScoreMemory<E, S>::bytes(R, index_head_groups(a.heads), kScoreTiles);
  DSV4_TRY(allow_shared(score_kernel<E, R, S>, bytes));
  const dim3 grid(static_cast<unsigned>(row_groups), static_cast<unsigned>(ceil_div<int64_t>(max_entries, s.chunk)));
  return enqueue(ctx, "score_kernel", score_kernel<E, R, S>, grid, kScoreThreads, static_cast<size_t>(bytes), a, s);
}

Status launch_select(OpContext& ctx, const IndexSelectArgs& a, const Scores& s, int64_t max_entries) {
  // More blocks where few rows leave processors idle, if each has enough to do; many rows hide what a small block waits for.
  unsigned blocks = 1;
  while (blocks < kMaxCluster && (max_entries > blocks * int64_t{kKeysOfBlock} ||
                                  (s.rows * blocks < kSelectBlocks && max_entries >= blocks * int64_t{2048}))) {
    blocks *= 2;
  }
  const unsigned threads = blocks == 1 || s.rows > kFewRows ? 256 : kMostSelectWarps * 32;
  const int64_t keys = ceil_div<int64_t>(max_entries, blocks * 4) * 4;
  constexpr int64_t kSelection = sizeof(Selection), kMost = std::min<int64_t>(kSelectMost, (kMaxSharedBytes - kSelection) / 4);
  if (keys > kMost) {
    return Status(Code::kUnsupported,
                  cat("cuda: index_select: ", max_entries, " entries of a sequence: expected at most ", kMost * kMaxCluster));
  }
  const int64_t bytes = kSelection + keys * 4;
  DSV4_TRY(allow_shared(select_kernel, static_cast<int>(bytes)));
  DSV4_TRY(allow_clusters(select_kernel));
  return enqueue_clusters(ctx, "select_kernel", select_kernel, dim3(blocks, static_cast<unsigned>(s.rows)), blocks, threads,
                          static_cast<size_t>(bytes), a, s);
}

}  // namespace

Status index_select(OpContext& ctx, const IndexSelectArgs& a) {
  Prepare queries;
  queries.index = a;
  DSV4_TRY(prepare(ctx, queries));
  return select_entries(ctx, a);
}

Status select_entries(OpContext& ctx, const IndexSelectArgs& a) {
  const int64_t T = a.batch.rows;
  if (T == 0) return {};
  const int64_t max_entries = a.batch.max_pages * a.keys.per_page;
  DSV4_TRY(check_dim("index_select", "bytes of a key", 2 * a.e, a.keys.row_bytes));
  if (T <= kFewRows && max_entries <= kFewEntries) {
    return a.e == 64 ? launch_index<64, 1>(ctx, a, max_entries) : launch_index<128, 1>(ctx, a, max_entries);
  }
  // Two kernels are faster for one row, too (by 7 us at 128K tokens), but a launch more in every layer.
  if (T == 1 && max_entries <= kLongEntries && a.heads <= kIndexTile) {
    return a.e == 64 ? launch_index<64, 2>(ctx, a, max_entries) : launch_index<128, 2>(ctx, a, max_entries);
  }
  const int64_t stride = ceil_div<int64_t>(max_entries, kIndexTile) * kIndexTile;
  const int64_t rows = std::min(std::clamp<int64_t>(kScoreBytes / (stride * 4), 1, T), kMaxRows);
  Workspace::Scope scratch(ctx.workspace);
  Scores s{.first_row = 0, .rows = rows, .stride = stride, .chunk = 0, .data = nullptr};
  DSV4_ASSIGN(s.data, scratch.take<float>(rows * stride));
  // Rows of a prompt share their keys; more than 64 heads leave no room for the queries of several.
  const bool prompt = T >= kPromptRows * a.batch.sequences && a.heads <= kIndexTile;
  const auto scores_of = a.e == 64 ? prompt ? launch_scores<64, kPromptRows, 1> : launch_scores<64, 1, kPlaces>
                                   : prompt ? launch_scores<128, kPromptRows, 1> : launch_scores<128, 1, kPlaces>;
  for (; s.first_row < T; s.first_row += rows) {
    s.rows = std::min(rows, T - s.first_row);
    DSV4_TRY(scores_of(ctx, a, s, max_entries));
    DSV4_TRY(launch_select(ctx, a, s, max_entries));
  }
  return {};
}

}  // namespace dsv4::cuda
