// index_select: queries, scores on tensor cores, top-k by radix.
#include <algorithm>

#include "backends/cuda/core.h"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/ops.h"
#include "base/str.h"

namespace dsv4::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kEntriesPerWarp = 32;
constexpr int kEntries = kWarps * kEntriesPerWarp;  // of one block
constexpr int kSelectThreads = 512;
constexpr int64_t kScoreBytes = int64_t{256} << 20;  // of scores at one time; longer batches take turns

// One warp per head of a row: RoPE, Hadamard, idx4, in place.
__global__ void __launch_bounds__(256) index_query_kernel(const IndexSelectArgs a) {
  wait_for_previous();
  extern __shared__ float vectors[];
  const int e = static_cast<int>(a.e);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  if (i >= a.batch.rows * a.heads) return;
  float* x = vectors + threadIdx.x / 32 * e;
  bf16* row = a.q + i * e;
  load_row(row, e, x);
  rotate(x + e - a.rope.r, a.rope, a.batch.positions[i / a.heads], false);
  hadamard(x, e);
  idx4_row(x, e);
  store_row(x, e, row);
}

// scores[row][entry] = sum over heads of relu(q . k) w. Heads are the M operand, entries N.
template <int E>
__global__ void __launch_bounds__(kWarps * 32) score_kernel(const IndexSelectArgs a, int64_t first_row, int max_entries,
                                                           float* scores) {
  wait_for_previous();
  extern __shared__ uint4 shared[];
  constexpr int kRow = E * 2 + 64;  // bytes; rows meet different banks
  const int64_t t = first_row + blockIdx.y;
  const int visible = static_cast<int>((a.batch.positions[t] + 1) / a.ratio);
  const int first = blockIdx.x * kEntries;
  if (first >= visible || visible <= a.topk) return;
  const int heads = static_cast<int>(a.heads), tiles = (heads + 15) / 16;
  char* q = reinterpret_cast<char*>(shared);
  float* w = reinterpret_cast<float*>(q + tiles * 16 * kRow);
  const float scale = (1.0f / sqrtf(static_cast<float>(E))) * (1.0f / sqrtf(static_cast<float>(heads)));
  for (int i = threadIdx.x; i < tiles * 16 * (E / 8); i += kWarps * 32) {
    const int h = i / (E / 8), at = i % (E / 8);
    uint4 v = {0, 0, 0, 0};
    if (h < heads) v = reinterpret_cast<const uint4*>(a.q + (t * heads + h) * E)[at];
    *reinterpret_cast<uint4*>(q + h * kRow + at * 16) = v;
  }
  for (int h = threadIdx.x; h < tiles * 16; h += kWarps * 32) {
    w[h] = h < heads ? round_bf16(to_float(a.weights[t * heads + h]) * scale) : 0.0f;
  }
  __syncthreads();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int seq = a.batch.row_seq[t];
  const int mine = first + warp * kEntriesPerWarp;
  const char* keys[4];
  for (int n = 0; n < 4; ++n) {
    const int entry = min(mine + n * 8 + g, visible - 1);
    const int64_t page = a.batch.seq_pages[seq * a.batch.max_pages + entry / a.keys.per_page];
    keys[n] = a.keys.data + (page * a.keys.per_page + entry % a.keys.per_page) * a.keys.row_bytes;
  }
  uint4 k[4][E / 32];
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int j = 0; j < E / 32; ++j) k[n][j] = *reinterpret_cast<const uint4*>(keys[n] + j * 64 + c * 16);
  }
  float sum[4][2] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    float dot[4][4] = {};
#pragma unroll
    for (int j = 0; j < E / 32; ++j) {
      const uint4 low = *reinterpret_cast<const uint4*>(q + (tile * 16 + g) * kRow + j * 64 + c * 16);
      const uint4 high = *reinterpret_cast<const uint4*>(q + (tile * 16 + g + 8) * kRow + j * 64 + c * 16);
      const uint32_t a0[4] = {low.x, high.x, low.y, high.y}, a1[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const uint32_t b0[2] = {k[n][j].x, k[n][j].y}, b1[2] = {k[n][j].z, k[n][j].w};
        mma_bf16(dot[n], a0, b0);
        mma_bf16(dot[n], a1, b1);
      }
    }
    const float w0 = w[tile * 16 + g], w1 = w[tile * 16 + g + 8];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      // A NaN stays one: fmaxf would drop it.
      const auto relu = [](float v) { return v > 0.0f || v != v ? v : 0.0f; };
      sum[n][0] += relu(dot[n][0]) * w0 + relu(dot[n][2]) * w1;
      sum[n][1] += relu(dot[n][1]) * w0 + relu(dot[n][3]) * w1;
    }
  }
  for (int n = 0; n < 4; ++n) {
    for (int i = 0; i < 2; ++i) {
      float v = sum[n][i];
      for (int o = 4; o < 32; o *= 2) v += __shfl_xor_sync(~0u, v, o);
      const int entry = mine + n * 8 + 2 * c + i;
      if (g == 0 && entry < visible) scores[static_cast<int64_t>(blockIdx.y) * max_entries + entry] = v;
    }
  }
}

// Larger float, larger key; NaN above all.
__device__ uint32_t ordered(float v) {
  const uint32_t u = float_to_bits(v);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// Exclusive sum over the block of one int per thread; the total in `total`.
__device__ int block_scan(int v, int* shared, int& total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int inclusive = v;
  for (int o = 1; o < 32; o *= 2) {
    const int other = __shfl_up_sync(~0u, inclusive, o);
    if (lane >= o) inclusive += other;
  }
  if (lane == 31) shared[warp] = inclusive;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < kSelectThreads / 32; ++w) {
    if (w < warp) before += shared[w];
    total += shared[w];
  }
  __syncthreads();
  return before + inclusive - v;
}

// One block per row: the k-th largest key by four passes of eight bits, then the chosen in order of
// index; of those equal to it, the lowest indices.
__global__ void __launch_bounds__(kSelectThreads) select_kernel(const IndexSelectArgs a, int64_t first_row, int max_entries,
                                                               const float* scores) {
  wait_for_previous();
  __shared__ int histogram[256];
  __shared__ int scan[kSelectThreads / 32];
  __shared__ uint32_t prefix_shared;
  __shared__ int wanted_shared;
  const int64_t t = first_row + blockIdx.x;
  const int visible = static_cast<int>((a.batch.positions[t] + 1) / a.ratio), topk = static_cast<int>(a.topk);
  int32_t* out = a.selected + t * topk;
  const int count = min(topk, visible);
  if (threadIdx.x == 0) a.selected_count[t] = count;
  if (visible <= topk) {
    for (int i = threadIdx.x; i < topk; i += kSelectThreads) out[i] = i < visible ? i : -1;
    return;
  }
  const float* row = scores + static_cast<int64_t>(blockIdx.x) * max_entries;
  uint32_t prefix = 0;
  int wanted = topk;  // still to be found among the keys with this prefix
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += kSelectThreads) histogram[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < visible; i += kSelectThreads) {
      const uint32_t key = ordered(row[i]);
      if (shift == 24 || key >> (shift + 8) == prefix) atomicAdd(&histogram[key >> shift & 255], 1);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      // Lane l holds bins 255 - 8 l down to 248 - 8 l; the bin where the sum from above reaches `wanted`.
      const int lane = threadIdx.x;
      int mine = 0;
      for (int i = 0; i < 8; ++i) mine += histogram[255 - 8 * lane - i];
      int through = mine;
      for (int o = 1; o < 32; o *= 2) {
        const int other = __shfl_up_sync(~0u, through, o);
        if (lane >= o) through += other;
      }
      int left = wanted - (through - mine);
      if (left > 0 && through >= wanted) {
        int bin = 255 - 8 * lane;
        while (histogram[bin] < left) left -= histogram[bin--];
        prefix_shared = prefix << 8 | static_cast<uint32_t>(bin);
        wanted_shared = left;
      }
    }
    __syncthreads();
    prefix = prefix_shared;
    wanted = wanted_shared;
  }
  int written = 0, equal_taken = 0;
  for (int base = 0; base < visible; base += kSelectThreads) {
    const int i = base + threadIdx.x;
    const uint32_t key = i < visible ? ordered(row[i]) : 0;
    const bool equal = i < visible && key == prefix;
    int total;
    const int before = block_scan(equal, scan, total);
    const bool take = i < visible && (key > prefix || (equal && equal_taken + before < wanted));
    equal_taken += total;
    const int at = block_scan(take, scan, total);
    if (take) out[written + at] = i;
    written += total;
  }
}

}  // namespace

Status index_select(OpContext& ctx, const IndexSelectArgs& a) {
  const int64_t T = a.batch.rows;
  if (T == 0) return {};
  if (a.e != 64 && a.e != 128) {
    return Status(Code::kUnsupported, cat("cuda: index head dim ", a.e, ": expected 64 or 128"));
  }
  const int query_bytes = 8 * static_cast<int>(a.e * static_cast<int64_t>(sizeof(float)));
  DSV4_TRY(enqueue(ctx, "index_query_kernel", index_query_kernel, static_cast<unsigned>(ceil_div<int64_t>(T * a.heads, 8)), 256, static_cast<size_t>(query_bytes), a));

  const int64_t max_entries = a.batch.max_pages * a.keys.per_page;
  const int64_t rows = std::clamp<int64_t>(kScoreBytes / (max_entries * 4), 1, T);
  Workspace::Scope scratch(ctx.workspace);
  DSV4_ASSIGN(float* scores, scratch.take<float>(rows * max_entries));
  const int tiles = static_cast<int>(ceil_div<int64_t>(a.heads, 16));
  const int bytes = tiles * 16 * (static_cast<int>(a.e) * 2 + 64 + 4);
  const auto kernel = a.e == 64 ? score_kernel<64> : score_kernel<128>;
  DSV4_TRY(allow_shared(kernel, bytes));
  for (int64_t first = 0; first < T; first += rows) {
    const unsigned n = static_cast<unsigned>(std::min(rows, T - first));
    const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(max_entries, kEntries)), n);
    DSV4_TRY(enqueue(ctx, "score_kernel", kernel, grid, kWarps * 32, static_cast<size_t>(bytes), a, first, static_cast<int>(max_entries), scores));
    DSV4_TRY(enqueue(ctx, "select_kernel", select_kernel, n, kSelectThreads, 0, a, first, static_cast<int>(max_entries), scores));
  }
  return {};
}

}  // namespace dsv4::cuda
