// index_select: scores on tensor cores, top-k by radix. For few rows in one launch: the entries of a row
// are shared out among the blocks of one cluster, which count together. For many rows in two, a block
// per row for the selection.
#include <cooperative_groups.h>

#include <algorithm>

#include "backends/cuda/core.h"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/launch/prepare.h"
#include "backends/cuda/ops.h"

namespace dsv4::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kScoreWarps = 4;
constexpr int kEntries = kScoreWarps * 32;  // of one block of score_kernel
constexpr int kSelectThreads = 512, kSelectWarps = kSelectThreads / 32;
constexpr int kFewRows = 16;                // up to here a cluster per row
constexpr int64_t kScoreBytes = int64_t{256} << 20;  // of scores at one time; longer batches take turns

template <int E>
constexpr int kQueryRow = E * 2 + 64;  // bytes; rows meet different banks

// The queries of row t and their weights in shared memory, heads padded to whole tiles.
template <int E>
__device__ float* load_queries(const IndexSelectArgs& a, int64_t t, char* q) {
  const int heads = static_cast<int>(a.heads), tiles = (heads + 15) / 16;
  float* w = reinterpret_cast<float*>(q + tiles * 16 * kQueryRow<E>);
  const float scale = (1.0f / sqrtf(static_cast<float>(E))) * (1.0f / sqrtf(static_cast<float>(heads)));
  for (int i = threadIdx.x; i < tiles * 16 * (E / 8); i += blockDim.x) {
    const int h = i / (E / 8), at = i % (E / 8);
    uint4 v = {0, 0, 0, 0};
    if (h < heads) v = reinterpret_cast<const uint4*>(a.q + (t * heads + h) * E)[at];
    *reinterpret_cast<uint4*>(q + h * kQueryRow<E> + at * 16) = v;
  }
  for (int h = threadIdx.x; h < tiles * 16; h += blockDim.x) {
    w[h] = h < heads ? round_bf16(to_float(a.weights[t * heads + h]) * scale) : 0.0f;
  }
  return w;
}

// Scores of NT * 8 entries from `mine` by one warp: sum over heads of relu(q . k) w. Heads are the M
// operand, entries N. scores[i] for entry mine + i below `end`.
template <int E, int NT>
__device__ void score_entries(const IndexSelectArgs& a, int seq, const char* q, const float* w, int mine, int end,
                              float* scores) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4, tiles = (static_cast<int>(a.heads) + 15) / 16;
  uint4 k[NT][E / 32];
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    const int entry = min(mine + n * 8 + g, end - 1);
    const int64_t page = a.batch.seq_pages[seq * a.batch.max_pages + entry / a.keys.per_page];
    const char* key = a.keys.data + (page * a.keys.per_page + entry % a.keys.per_page) * a.keys.row_bytes;
#pragma unroll
    for (int j = 0; j < E / 32; ++j) k[n][j] = *reinterpret_cast<const uint4*>(key + j * 64 + c * 16);
  }
  float sum[NT][2] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    float dot[NT][4] = {};
#pragma unroll
    for (int j = 0; j < E / 32; ++j) {
      const uint4 low = *reinterpret_cast<const uint4*>(q + (tile * 16 + g) * kQueryRow<E> + j * 64 + c * 16);
      const uint4 high = *reinterpret_cast<const uint4*>(q + (tile * 16 + g + 8) * kQueryRow<E> + j * 64 + c * 16);
      const uint32_t a0[4] = {low.x, high.x, low.y, high.y}, a1[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const uint32_t b0[2] = {k[n][j].x, k[n][j].y}, b1[2] = {k[n][j].z, k[n][j].w};
        mma_bf16(dot[n], a0, b0);
        mma_bf16(dot[n], a1, b1);
      }
    }
    const float w0 = w[tile * 16 + g], w1 = w[tile * 16 + g + 8];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      // A NaN stays one: fmaxf would drop it.
      const auto relu = [](float v) { return v > 0.0f || v != v ? v : 0.0f; };
      sum[n][0] += relu(dot[n][0]) * w0 + relu(dot[n][2]) * w1;
      sum[n][1] += relu(dot[n][1]) * w0 + relu(dot[n][3]) * w1;
    }
  }
#pragma unroll
  for (int n = 0; n < NT; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float v = sum[n][i];
      for (int o = 4; o < 32; o *= 2) v += __shfl_xor_sync(~0u, v, o);
      const int at = n * 8 + 2 * c + i;
      if (g == 0 && mine + at < end) scores[at] = v;
    }
  }
}

// Larger float, larger key; NaN above all.
__device__ uint32_t ordered(float v) {
  const uint32_t u = float_to_bits(v);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// The topk best of a row by the blocks of a cluster, of which each holds the scores of its n entries from
// index `begin`, in order of the blocks. The k-th largest key by up to four passes of eight bits, then
// the chosen in order of index; of those equal to it, the lowest indices.
__device__ void select_best(const float* scores, int n, int begin, int topk, int32_t* out) {
  __shared__ int histogram[2][256], all[256], counts[kSelectWarps][2], mine[2];
  __shared__ int found[3];  // bin, keys still wanted in it, keys in it
  const cg::cluster_group cluster = cg::this_cluster();
  const int rank = static_cast<int>(cluster.block_rank()), blocks = static_cast<int>(cluster.num_blocks());
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x < 256) histogram[0][threadIdx.x] = 0;
  __syncthreads();
  uint32_t prefix = 0;
  int wanted = topk;  // among the keys with this prefix
  int shift = 32;
  for (int pass = 0; pass < 4; ++pass) {
    shift -= 8;
    int* const here = histogram[pass % 2];
    for (int i = threadIdx.x; i < n; i += kSelectThreads) {
      const uint32_t key = ordered(scores[i]);
      if (pass == 0 || key >> (shift + 8) == prefix) atomicAdd(&here[key >> shift & 255], 1);
    }
    cluster.sync();
    if (threadIdx.x < 256) {
      int total = 0;
#pragma unroll 4
      for (int b = 0; b < blocks; ++b) total += cluster.map_shared_rank(here, b)[threadIdx.x];
      all[threadIdx.x] = total;
      // The others have read it before they came to this pass.
      histogram[(pass + 1) % 2][threadIdx.x] = 0;
    }
    __syncthreads();
    if (warp == 0) {
      // Lane l holds bins 255 - 8 l down to 248 - 8 l; the bin where the sum from above reaches `wanted`.
      int share = 0;
      for (int i = 0; i < 8; ++i) share += all[255 - 8 * lane - i];
      int through = share;
      for (int o = 1; o < 32; o *= 2) {
        const int other = __shfl_up_sync(~0u, through, o);
        if (lane >= o) through += other;
      }
      int left = wanted - (through - share);
      if (left > 0 && through >= wanted) {
        int bin = 255 - 8 * lane;
        while (all[bin] < left) left -= all[bin--];
        found[0] = bin;
        found[1] = left;
        found[2] = all[bin];
      }
    }
    __syncthreads();
    prefix = prefix << 8 | static_cast<uint32_t>(found[0]);
    wanted = found[1];
    if (wanted == found[2]) break;  // all that share this prefix
  }
  // A warp takes neighbouring entries; how many are chosen before it says where its own go.
  const int segment = (n + kSelectThreads - 1) / kSelectThreads * 32, first = warp * segment, end = min(first + segment, n);
  int above = 0, equal = 0;
  for (int base = first; base < end; base += 32) {
    const uint32_t key = base + lane < end ? ordered(scores[base + lane]) >> shift : 0;
    above += __popc(__ballot_sync(~0u, base + lane < end && key > prefix));
    equal += __popc(__ballot_sync(~0u, base + lane < end && key == prefix));
  }
  if (lane == 0) {
    counts[warp][0] = above;
    counts[warp][1] = equal;
  }
  __syncthreads();
  if (threadIdx.x < 2) {
    int total = 0;
    for (int w = 0; w < kSelectWarps; ++w) total += counts[w][threadIdx.x];
    mine[threadIdx.x] = total;
  }
  cluster.sync();
  above = equal = 0;
  for (int b = 0; b < rank; ++b) {
    const int* other = cluster.map_shared_rank(mine, b);
    above += other[0];
    equal += other[1];
  }
  for (int w = 0; w < warp; ++w) {
    above += counts[w][0];
    equal += counts[w][1];
  }
  for (int base = first; base < end; base += 32) {
    const uint32_t key = base + lane < end ? ordered(scores[base + lane]) >> shift : 0;
    const uint32_t more = __ballot_sync(~0u, base + lane < end && key > prefix);
    const uint32_t same = __ballot_sync(~0u, base + lane < end && key == prefix);
    const uint32_t before = (1u << lane) - 1;
    const int same_before = equal + __popc(same & before);
    const int at = above + __popc(more & before) + min(same_before, wanted);
    if ((more >> lane & 1) || ((same >> lane & 1) && same_before < wanted)) out[at] = begin + base + lane;
    above += __popc(more);
    equal += __popc(same);
  }
  cluster.sync();  // nobody leaves while others read its counts
}

// Rows that see no more than topk entries take all of them.
__device__ void select_all(int visible, int topk, int32_t* out) {
  for (int i = threadIdx.x; i < topk; i += blockDim.x) out[i] = i < visible ? i : -1;
}

template <int E>
__global__ void __launch_bounds__(kScoreWarps * 32) score_kernel(const IndexSelectArgs a, int64_t first_row, int max_entries,
                                                                float* scores) {
  extern __shared__ uint4 shared[];
  const int64_t t = first_row + blockIdx.y;
  const int visible = static_cast<int>((a.batch.positions[t] + 1) / a.ratio), first = blockIdx.x * kEntries;
  wait_for_previous();
  if (first >= visible || visible <= a.topk) return;
  char* q = reinterpret_cast<char*>(shared);
  const float* w = load_queries<E>(a, t, q);
  __syncthreads();
  const int mine = first + static_cast<int>(threadIdx.x) / 32 * 32;
  if (mine >= visible) return;
  score_entries<E, 4>(a, a.batch.row_seq[t], q, w, mine, visible,
                      scores + static_cast<int64_t>(blockIdx.y) * max_entries + mine);
}

__global__ void __launch_bounds__(kSelectThreads) select_kernel(const IndexSelectArgs a, int64_t first_row, int max_entries,
                                                               const float* scores) {
  wait_for_previous();
  const int64_t t = first_row + blockIdx.x;
  const int visible = static_cast<int>((a.batch.positions[t] + 1) / a.ratio), topk = static_cast<int>(a.topk);
  int32_t* out = a.selected + t * topk;
  if (threadIdx.x == 0) a.selected_count[t] = min(topk, visible);
  if (visible <= topk) return select_all(visible, topk, out);
  select_best(scores + static_cast<int64_t>(blockIdx.x) * max_entries, visible, 0, topk, out);
}

// Both at once: a cluster per row.
template <int E>
__global__ void __launch_bounds__(kSelectThreads) index_kernel(const IndexSelectArgs a) {
  extern __shared__ uint4 shared[];
  const cg::cluster_group cluster = cg::this_cluster();
  const int rank = static_cast<int>(cluster.block_rank()), blocks = static_cast<int>(cluster.num_blocks());
  const int64_t t = blockIdx.y;
  const int visible = static_cast<int>((a.batch.positions[t] + 1) / a.ratio), topk = static_cast<int>(a.topk);
  const int seq = a.batch.row_seq[t];
  int32_t* out = a.selected + t * topk;
  wait_for_previous();
  if (rank == 0 && threadIdx.x == 0) a.selected_count[t] = min(topk, visible);
  if (visible <= topk) {
    if (rank == 0) select_all(visible, topk, out);
    return;
  }
  char* q = reinterpret_cast<char*>(shared);
  const int tiles = (static_cast<int>(a.heads) + 15) / 16, warp = threadIdx.x / 32;
  const int per = ((visible + blocks - 1) / blocks + 7) / 8 * 8, begin = min(rank * per, visible), n = min(per, visible - begin);
  const float* w = load_queries<E>(a, t, q);
  float* scores = reinterpret_cast<float*>(q + tiles * 16 * (kQueryRow<E> + 4));
  __syncthreads();
  // More entries at a time where there are many; a score is the same.
  if (n <= kSelectWarps * 8) {
    if (warp * 8 < n) score_entries<E, 1>(a, seq, q, w, begin + warp * 8, begin + n, scores + warp * 8);
  } else {
    for (int at = warp * 32; at < n; at += kSelectThreads) {
      score_entries<E, 4>(a, seq, q, w, begin + at, begin + n, scores + at);
    }
  }
  __syncthreads();
  select_best(scores, n, begin, topk, out);
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
  const int tiles = static_cast<int>(ceil_div<int64_t>(a.heads, 16));
  const int query_bytes = tiles * 16 * (static_cast<int>(a.e) * 2 + 64 + 4);
  const int64_t all_bytes = query_bytes + ceil_div<int64_t>(max_entries, kMaxCluster * 8) * 8 * 4;
  if (T <= kFewRows && all_bytes <= kMaxSharedBytes - 8 * 1024) {
    const auto kernel = a.e == 64 ? index_kernel<64> : index_kernel<128>;
    DSV4_TRY(allow_shared(kernel, static_cast<int>(all_bytes)));
    DSV4_TRY(allow_clusters(kernel));
    return enqueue_clusters(ctx, "index_kernel", kernel, dim3(kMaxCluster, static_cast<unsigned>(T)), kMaxCluster,
                            kSelectThreads, static_cast<size_t>(all_bytes), a);
  }
  const int64_t rows = std::clamp<int64_t>(kScoreBytes / (max_entries * 4), 1, T);
  Workspace::Scope scratch(ctx.workspace);
  DSV4_ASSIGN(float* scores, scratch.take<float>(rows * max_entries));
  const auto kernel = a.e == 64 ? score_kernel<64> : score_kernel<128>;
  DSV4_TRY(allow_shared(kernel, query_bytes));
  for (int64_t first = 0; first < T; first += rows) {
    const unsigned n = static_cast<unsigned>(std::min(rows, T - first));
    const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(max_entries, kEntries)), n);
    DSV4_TRY(enqueue(ctx, "score_kernel", kernel, grid, kScoreWarps * 32, static_cast<size_t>(query_bytes), a, first, static_cast<int>(max_entries), scores));
    DSV4_TRY(enqueue(ctx, "select_kernel", select_kernel, n, kSelectThreads, 0, a, first, static_cast<int>(max_entries), scores));
  }
  return {};
}

}  // namespace dsv4::cuda
