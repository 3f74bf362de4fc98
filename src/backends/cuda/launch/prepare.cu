// Everything between the projections and attention that rows of q, kv and the compressor need, side by
// side in one grid: qkv (with the ring), compress, the indexer's queries. A warp makes a vector.
#include "backends/cuda/launch/prepare.h"

#include <algorithm>

#include "backends/cuda/core.h"
#include "backends/cuda/device/kv_row.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/ops.h"
#include "base/str.h"
#include "ops/check.h"

namespace dsv4::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kAhead = 4;  // rows of a column whose loads are in flight together

struct Params {
  Prepare p;
  int32_t compress_blocks[2], head_blocks;  // then the indexer's
};

// Rows of one sequence as the compressor sees them: the batch's own rows, older ones from the tail.
struct RawRows {
  const CompressArgs& a;
  int64_t first_row, slot;
  int first_position, window;  // position of the first row pooled

  // Element `column` of row `window + i`; i below twice the ratio, which is no more than the tail holds.
  __device__ int64_t at(int i, int oldest, int column) const {
    const int columns = static_cast<int>(a.tail.columns), rows = static_cast<int>(a.tail.rows), p = window + i;
    if (p >= first_position) return (first_row + p - first_position) * columns + column;
    const int wrapped = oldest + i >= rows ? oldest + i - rows : oldest + i;
    return (slot * rows + wrapped) * columns + column;
  }
  __device__ float4 c(int i, int oldest, int column) const {
    return *reinterpret_cast<const float4*>((window + i >= first_position ? a.c : a.tail.c) + at(i, oldest, column));
  }
  __device__ float4 s(int i, int oldest, int column) const {
    const bool own = window + i >= first_position;
    const int m = static_cast<int>(a.spec.ratio);
    const float4 v = *reinterpret_cast<const float4*>((own ? a.s : a.tail.s) + at(i, oldest, column));
    const float4 w = *reinterpret_cast<const float4*>(a.ape + (i >= m ? i - m : i) * static_cast<int>(a.tail.columns) + column);
    return own ? float4{v.x + w.x, v.y + w.y, v.z + w.z, v.w + w.w} : v;
  }
};

__device__ void store_tail(const CompressArgs& a, int64_t t, int seq, int position) {
  const int64_t to = (static_cast<int64_t>(a.batch.seq_slot[seq]) * a.tail.rows + position % a.tail.rows) * a.tail.columns;
  const int64_t from = t * a.tail.columns, ape = position % a.spec.ratio * a.tail.columns;
  for (int i = threadIdx.x; i < a.tail.columns; i += blockDim.x) {
    a.tail.c[to + i] = a.c[from + i];
    a.tail.s[to + i] = a.s[from + i] + a.ape[ape + i];
  }
}

__device__ float4 over(const float4& a, const float4& b, float (*f)(float, float)) {
  return {f(a.x, b.x), f(a.y, b.y), f(a.z, b.z), f(a.w, b.w)};
}

__device__ void store_cached(const float (&x)[kQuads][4], int n, int r, char* row, KvFormat format) {
  if (format == KvFormat::kFp8Rope) store_fp8_row(x, n, r, row);
  else store_row(x, n, reinterpret_cast<bf16*>(row));
}

// The end of a key/value row or entry: norm, RoPE, kv8, by one warp. The row lies in shared memory as
// floats, or in `row`; it goes to `to` and into the cache, where given. One copy of the code for both uses.
__device__ __noinline__ void finish_row(const float* shared, const bf16* row, const bf16* norm, int n, float eps,
                                        const float2* turns, int r, bf16* to, char* cached, KvFormat format) {
  float x[kQuads][4], w[kQuads][4];
  load_row(norm, n, w);
  if (row) {
    load_row(row, n, x);
  } else {
#pragma unroll
    for (int k = 0; k < kQuads; ++k) {
#pragma unroll
      for (int e = 0; e < 4; ++e) x[k][e] = element_of(k) < n ? shared[element_of(k) + e] : 0.0f;
    }
  }
  norm_row(x, w, n, eps);
  rotate(x, n, r, turns);
  kv8_row(x, n - r);
  if (to) store_row(x, n, to);
  if (cached) store_cached(x, n, r, cached, format);
}

// An index vector: RoPE, Hadamard, idx4.
__device__ void finish_index(float (&x)[1][4], int n, int64_t r, const float2* turns, bf16* to) {
  rotate(x, n, r, turns);
  hadamard(x, n);
  idx4_row(x);
  store_row(x, n, to);
}

// One row of the batch by one block; makes an entry where the row is the last of its window. Groups of
// threads take neighbouring rows of the window, four columns each; the groups' sums are added in order.
__device__ void compress_row(const CompressArgs& a, int64_t t, bool tail, float2* turns) {
  __shared__ float4 first[kThreads], second[kThreads];
  __shared__ float entry[kMaxRow];
  const int seq = a.batch.row_seq[t], position = a.batch.positions[t];
  const int m = static_cast<int>(a.spec.ratio), dim = static_cast<int>(a.spec.dim), quads = dim / 4;
  const int64_t first_row = a.batch.seq_begin[seq];
  const int index = position / m, begin = index * m;
  const int from = a.spec.overlap && index > 0 ? begin - m : begin, n = begin + m - from;
  const RawRows rows{a, first_row, a.batch.seq_slot[seq], a.batch.positions[first_row], from};
  const int oldest = from % static_cast<int>(a.tail.rows);
  const bool last = (position + 1) % m == 0;
  if (last && threadIdx.x < 32) make_turns(a.rope, begin, static_cast<int>(threadIdx.x), 32, turns);
  wait_for_previous();
  if (tail) store_tail(a, t, seq, position);
  if (!last) return;
  const int groups = min(n, kThreads / quads), per = (n + groups - 1) / groups;
  const int group = threadIdx.x / quads, at = threadIdx.x % quads * 4;
  const int p0 = group * per, p1 = group < groups ? min(p0 + per, n) : p0;  // rows from the first pooled
  const auto column = [&](int p) { return a.spec.overlap && from + p >= begin ? dim + at : at; };

  float4 top = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  for (int p = p0; p < p1; p += kAhead) {
    float4 s[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (p + i < p1) s[i] = rows.s(p + i, oldest, column(p + i));
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (p + i < p1) top = over(top, s[i], fmaxf);
    }
  }
  first[threadIdx.x] = top;
  __syncthreads();
  for (int g = 0; g < groups; ++g) top = over(top, first[g * quads + at / 4], fmaxf);
  __syncthreads();
  float4 sum = {0, 0, 0, 0}, pooled = {0, 0, 0, 0};
  const auto add = [](float s, float c, float m_, float& sum_, float& pooled_) {
    const float e = expf(s - m_);
    sum_ += e;
    pooled_ = __fmaf_rn(c, e, pooled_);
  };
  for (int p = p0; p < p1; p += kAhead) {
    float4 s[kAhead], c[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (p + i >= p1) continue;
      s[i] = rows.s(p + i, oldest, column(p + i));
      c[i] = rows.c(p + i, oldest, column(p + i));
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (p + i >= p1) continue;
      add(s[i].x, c[i].x, top.x, sum.x, pooled.x);
      add(s[i].y, c[i].y, top.y, sum.y, pooled.y);
      add(s[i].z, c[i].z, top.z, sum.z, pooled.z);
      add(s[i].w, c[i].w, top.w, sum.w, pooled.w);
    }
  }
  first[threadIdx.x] = sum;
  second[threadIdx.x] = pooled;
  __syncthreads();
  for (int i = threadIdx.x; i < dim; i += kThreads) {
    float total = 0.0f, value = 0.0f;
    for (int g = 0; g < groups; ++g) {
      total += reinterpret_cast<const float*>(first)[g * dim + i];
      value += reinterpret_cast<const float*>(second)[g * dim + i];
    }
    entry[i] = round_bf16(value / total);
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const int64_t page = a.batch.seq_pages[seq * a.batch.max_pages + index / a.out.per_page];
  char* out = a.out.data + (page * a.out.per_page + index % a.out.per_page) * a.out.row_bytes;
  if (!a.index_key) {
    return finish_row(entry, nullptr, a.norm, dim, a.eps, turns, static_cast<int>(a.rope.r), nullptr, out, a.out.format);
  }
  float x[1][4], w[1][4];
  load_row(a.norm, dim, w);
#pragma unroll
  for (int e = 0; e < 4; ++e) x[0][e] = element_of(0) < dim ? entry[element_of(0) + e] : 0.0f;
  norm_row(x, w, dim, a.eps);
  finish_index(x, dim, a.rope.r, turns, reinterpret_cast<bf16*>(out));
}

// Head h < H of row t is a query; head H is the row's key/value.
__device__ void head(const Prepare& p, int64_t i, float2* turns) {
  const QkvArgs& a = p.qkv;
  if (i >= a.T * (a.H + 1)) return wait_for_previous();
  const int64_t t = i / (a.H + 1), h = i % (a.H + 1);
  const int d = static_cast<int>(a.d), position = a.positions[t];
  make_turns(a.rope, position, static_cast<int>(threadIdx.x % 32), 32, turns);
  __syncwarp();
  wait_for_previous();
  if (h == a.H) {
    bf16* row = a.kv + t * d;
    const RingInsertArgs& insert = p.ring_insert;
    char* in_ring = nullptr;
    if (insert.ring.data) {
      const int64_t slot = insert.batch.seq_slot[insert.batch.row_seq[t]];
      in_ring = insert.ring.data + (slot * insert.ring.rows + position % insert.ring.rows) * insert.ring.row_bytes;
    }
    return finish_row(nullptr, row, a.kv_norm, d, a.eps, turns, static_cast<int>(a.rope.r), row, in_ring, insert.ring.format);
  }
  float x[kQuads][4];
  bf16* row = a.q + (t * a.H + h) * d;
  load_row(row, d, x);
  // The published BF16 chain; the mean's sum in FP32.
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kQuads; ++k) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      const float2 v = unpack2(pack2(x[k][e] * x[k][e], x[k][e + 1] * x[k][e + 1]));
      squares += v.x;
      squares += v.y;
    }
  }
  const float mean = round_bf16(warp_sum(squares) / static_cast<float>(d));
  const float r = round_bf16(1.0f / sqrtf(round_bf16(mean + a.eps)));
#pragma unroll
  for (int k = 0; k < kQuads; ++k) {
#pragma unroll
    for (int e = 0; e < 4; ++e) x[k][e] *= r;
    round4(x[k]);
  }
  rotate(x, d, a.rope.r, turns);
  store_row(x, d, row);
}

__device__ void index_head(const IndexSelectArgs& a, int64_t i, float2* turns) {
  if (i >= a.batch.rows * a.heads) return wait_for_previous();
  const int e = static_cast<int>(a.e);
  make_turns(a.rope, a.batch.positions[i / a.heads], static_cast<int>(threadIdx.x % 32), 32, turns);
  __syncwarp();
  wait_for_previous();
  float x[1][4];
  load_row(a.q + i * e, e, x);
  finish_index(x, e, a.rope.r, turns, a.q + i * e);
}

__global__ void __launch_bounds__(kThreads) prepare_kernel(const __grid_constant__ Params q) {
  __shared__ float2 turns[kWarps][kMaxPairs];
  int block = blockIdx.x;
  const int warp = threadIdx.x / 32, which = block < q.compress_blocks[0] ? 0 : 1;
  if (which == 1) block -= q.compress_blocks[0];
  if (block < q.compress_blocks[which]) return compress_row(q.p.compress[which], block, q.p.tails, turns[0]);
  block -= q.compress_blocks[1];
  if (block < q.head_blocks) return head(q.p, static_cast<int64_t>(block) * kWarps + warp, turns[warp]);
  index_head(q.p.index, static_cast<int64_t>(block - q.head_blocks) * kWarps + warp, turns[warp]);
}

// The last tail.rows rows of every sequence, after all entries were made.
__global__ void __launch_bounds__(kThreads) tail_kernel(const CompressArgs a) {
  wait_for_previous();
  const int64_t t = blockIdx.x;
  const int seq = a.batch.row_seq[t];
  if (t < a.batch.seq_begin[seq + 1] - a.tail.rows) return;
  store_tail(a, t, seq, a.batch.positions[t]);
}

__global__ void ring_insert_kernel(const RingInsertArgs a) {
  wait_for_previous();
  const int64_t t = blockIdx.x;
  const int seq = a.batch.row_seq[t];
  if (t < a.batch.seq_begin[seq + 1] - a.ring.rows) return;  // a later row takes this place
  const int64_t slot = a.batch.seq_slot[seq];
  char* row = a.ring.data + (slot * a.ring.rows + a.batch.positions[t] % a.ring.rows) * a.ring.row_bytes;
  if (a.ring.format == KvFormat::kFp8Rope) {
    if (threadIdx.x >= 32) return;
    float x[kQuads][4];
    load_row(a.kv + t * a.d, static_cast<int>(a.d), x);
    return store_fp8_row(x, static_cast<int>(a.d), static_cast<int>(a.r), row);
  }
  uint32_t* to = reinterpret_cast<uint32_t*>(row);
  const uint32_t* from = reinterpret_cast<const uint32_t*>(a.kv + t * a.d);
  for (int i = threadIdx.x; i < a.d / 2; i += blockDim.x) to[i] = from[i];
}

Status check_row(std::string_view op, std::string_view what, int64_t n, int64_t r) {
  if (n % 4 == 0 && n <= kMaxRow && r % 4 == 0 && r <= std::min<int64_t>(n, 2 * kMaxPairs)) return {};
  return Status(Code::kUnsupported, cat("cuda: ", op, ": ", what, " ", n, ", RoPE dims ", r, ": expected a multiple of 4 up to ",
                                        kMaxRow, " and one up to ", 2 * kMaxPairs));
}
Status check_index(std::string_view op, int64_t e, int64_t r) {
  if (e == 64 || e == 128) return check_row(op, "index head dim", e, r);
  return Status(Code::kUnsupported, cat("cuda: ", op, ": index head dim ", e, ": expected 64 or 128"));
}

}  // namespace

Status check_cached_row(std::string_view op, KvFormat format, int64_t d, int64_t r) {
  DSV4_TRY(check_kv_row(op, format, d, r));
  if (format == KvFormat::kBf16 || (d % 8 == 0 && r % 8 == 0 && d <= kMaxRow)) return {};
  return Status(Code::kUnsupported, cat("cuda: ", op, ": cache rows of ", d, " values with ", r, " RoPE dims: fp8 expects multiples of 8, at most ",
                                        kMaxRow, "; use bf16"));
}

Status prepare(OpContext& ctx, const Prepare& p) {
  Params q{};
  q.p = p;
  int64_t grid = 0;
  for (int i = 0; i < 2; ++i) {
    const CompressArgs& c = p.compress[i];
    if (!c.c) continue;
    if (c.index_key) DSV4_TRY(check_kv_format("compress", c.out.format, KvFormat::kBf16));
    DSV4_TRY(check_cached_row("compress", c.out.format, c.spec.dim, c.rope.r));
    DSV4_TRY(c.index_key ? check_index("compress", c.spec.dim, c.rope.r) : check_row("compress", "dim", c.spec.dim, c.rope.r));
    q.compress_blocks[i] = static_cast<int32_t>(c.batch.rows);
    grid += c.batch.rows;
  }
  if (p.qkv.q) {
    DSV4_TRY(check_row("qkv", "head dim", p.qkv.d, p.qkv.rope.r));
    q.head_blocks = static_cast<int32_t>(ceil_div<int64_t>(p.qkv.T * (p.qkv.H + 1), kWarps));
    grid += q.head_blocks;
  }
  if (p.ring_insert.ring.data) DSV4_TRY(check_cached_row("ring_insert", p.ring_insert.ring.format, p.qkv.d, p.qkv.rope.r));
  if (p.index.q) {
    DSV4_TRY(check_index("index_select", p.index.e, p.index.rope.r));
    grid += ceil_div<int64_t>(p.index.batch.rows * p.index.heads, kWarps);
  }
  if (grid == 0) return {};
  return enqueue(ctx, "prepare_kernel", prepare_kernel, static_cast<unsigned>(grid), kThreads, 0, q);
}

Status qkv(OpContext& ctx, const QkvArgs& a) {
  Prepare p;
  p.qkv = a;
  return prepare(ctx, p);
}

Status compress(OpContext& ctx, const CompressArgs& a) {
  if (a.batch.rows == 0) return {};
  const bool one_each = a.batch.rows == a.batch.sequences;
  Prepare p;
  p.compress[0] = a;
  p.tails = one_each;
  DSV4_TRY(prepare(ctx, p));
  if (one_each) return {};
  return enqueue(ctx, "tail_kernel", tail_kernel, static_cast<unsigned>(a.batch.rows), kThreads, 0, a);
}

Status ring_insert(OpContext& ctx, const RingInsertArgs& a) {
  DSV4_TRY(check_cached_row("ring_insert", a.ring.format, a.d, a.r));
  if (a.batch.rows == 0) return {};
  return enqueue(ctx, "ring_insert_kernel", ring_insert_kernel, static_cast<unsigned>(a.batch.rows), 128, 0, a);
}

Status attend(OpContext& ctx, const AttendArgs& a) {
  const BatchView& batch = a.attention.batch;
  const bool compressed = a.attention.ratio > 0, indexed = a.attention.selected != nullptr;
  if (batch.rows == 0) return {};
  if (batch.rows != batch.sequences) {
    // Rows of a chunk still need what later ones replace in ring and tails.
    Prepare first;
    first.qkv = a.qkv;
    if (indexed) first.index = a.select;
    DSV4_TRY(prepare(ctx, first));
    if (compressed) DSV4_TRY(compress(ctx, a.entries));
    if (indexed) {
      DSV4_TRY(compress(ctx, a.keys));
      DSV4_TRY(select_entries(ctx, a.select));
    }
    DSV4_TRY(attention_out(ctx, a.attention, a.qkv.rope));
    return ring_insert(ctx, a.ring_insert);
  }
  // One row per sequence: the place it takes in the ring is behind its window, so it may enter at once.
  DSV4_TRY(check_dim("attend", "rows of the ring, at least", a.attention.window,
                     std::min(a.attention.window, a.ring_insert.ring.rows)));
  Prepare all;
  all.qkv = a.qkv;
  all.ring_insert = a.ring_insert;
  all.tails = true;
  if (compressed) all.compress[0] = a.entries;
  if (indexed) {
    all.compress[1] = a.keys;
    all.index = a.select;
  }
  DSV4_TRY(prepare(ctx, all));
  if (indexed) DSV4_TRY(select_entries(ctx, a.select));
  return attention_out(ctx, a.attention, a.qkv.rope);
}

}  // namespace dsv4::cuda
