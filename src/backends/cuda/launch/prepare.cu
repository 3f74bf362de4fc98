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
  int32_t compress_blocks[2], kv_blocks, head_blocks;  // then the indexer's
};

// Between two runs of this kernel gigabytes of weights pass through the caches, so code comes from memory, and with few rows
// that takes longer than all else. So up to so many rows what follows the wait is run once before it: its code is there when
// it counts. On ones, where there is a norm: quotients of zeros take a longer way.
constexpr int64_t kFewRows = 8;
constexpr int kFinishRows = kWarps / kQuads;  // key/value rows of a block

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

// A row of the batch on its way into the tail.
struct TailRow {
  const float4 *c, *s, *ape;
  float4 *to_c, *to_s;
  int quads;

  __device__ TailRow(const CompressArgs& a, int64_t t, int seq, int position) : quads(static_cast<int>(a.tail.columns) / 4) {
    const int64_t to = a.batch.seq_slot[seq] * a.tail.rows + position % static_cast<int>(a.tail.rows);
    const int64_t ape_row = position % static_cast<int>(a.spec.ratio);
    c = reinterpret_cast<const float4*>(a.c) + t * quads;
    s = reinterpret_cast<const float4*>(a.s) + t * quads;
    ape = reinterpret_cast<const float4*>(a.ape) + ape_row * quads;
    to_c = reinterpret_cast<float4*>(a.tail.c) + to * quads;
    to_s = reinterpret_cast<float4*>(a.tail.s) + to * quads;
  }
  __device__ void store() const {
#pragma unroll 1
    for (int i = threadIdx.x; i < quads; i += kThreads) {
      const float4 v = s[i], w = ape[i];
      to_c[i] = c[i];
      to_s[i] = {v.x + w.x, v.y + w.y, v.z + w.z, v.w + w.w};
    }
  }
};

__device__ float4 over(const float4& a, const float4& b, float (*f)(float, float)) {
  return {f(a.x, b.x), f(a.y, b.y), f(a.z, b.z), f(a.w, b.w)};
}

// The end of a key/value row or entry of n values, which lies in shared memory: norm, RoPE, kv8. A warp makes 128 values,
// number `part`, of which it has the norm's; four warps make a row, each for itself. It goes to `to` and into the cache,
// where given. One copy of the code for both uses and the rehearsal.
__device__ __noinline__ void finish_row(const float* row, int part, uint2 norm, int n, float eps, const float2* turns, int r,
                                        bf16* to, char* cached, KvFormat format) {
  const int left = n - part * 128;
  float squares = 0.0f, x[1][4] = {}, w[4];
#pragma unroll
  for (int k = 0; k < kQuads; ++k) {
    if (element_of(k) >= n) continue;
    const float4 v = *reinterpret_cast<const float4*>(row + element_of(k));
    squares = add_squares({v.x, v.y, v.z, v.w}, squares);
  }
  if (element_of(0) < left) {
    const float4 v = *reinterpret_cast<const float4*>(row + element_of(part));
    x[0][0] = v.x;
    x[0][1] = v.y;
    x[0][2] = v.z;
    x[0][3] = v.w;
  }
  unpack_four(norm, w);
  norm_quad(x[0], w, squares, n, eps);
  rotate(x, left, r, turns);
  kv8_quad(x[0], left - r);
  if (to) store_row(x, left, to + part * 128);
  if (!cached) return;
  if (format == KvFormat::kFp8Rope) store_fp8_quads(x[0], part, n, r, cached);
  else store_row(x, left, reinterpret_cast<bf16*>(cached) + part * 128);
}
__device__ uint2 load_quad(const bf16* row, int part, int n) {
  return element_of(part) < n ? *reinterpret_cast<const uint2*>(row + element_of(part)) : uint2{0, 0};
}

// An index vector: RoPE, Hadamard, idx4; its first `stored` values go to `to`. One copy of the code.
__device__ __noinline__ void finish_index(float4 v, int n, int r, const float2* turns, int stored, bf16* to) {
  float x[1][4] = {{v.x, v.y, v.z, v.w}};
  rotate(x, n, r, turns);
  hadamard(x, n);
  idx4_row(x);
  store_row(x, stored, to);
}
// The key of n values in shared memory: norm before all that.
__device__ void finish_key(const float* row, uint2 norm, int n, float eps, int r, const float2* turns, bf16* to) {
  float4 v = {0, 0, 0, 0};
  if (element_of(0) < n) v = *reinterpret_cast<const float4*>(row + element_of(0));
  float x[4] = {v.x, v.y, v.z, v.w}, w[4];
  unpack_four(norm, w);
  norm_quad(x, w, add_squares(x, 0.0f), n, eps);
  finish_index({x[0], x[1], x[2], x[3]}, n, r, turns, n, to);
}

// One row of the batch by one block; makes an entry where the row is the last of its window. Groups of
// threads take neighbouring rows of the window, four columns each; the groups' sums are added in order.
__device__ void compress_row(const CompressArgs& a, int64_t t, bool tail, float2* turns) {
  __shared__ float4 first[kThreads], second[kThreads];
  __shared__ float4 entry4[kMaxRow / 4];
  float* const entry = reinterpret_cast<float*>(entry4);
  const int seq = a.batch.row_seq[t], position = a.batch.positions[t];
  const int m = static_cast<int>(a.spec.ratio), dim = static_cast<int>(a.spec.dim), quads = dim / 4;
  const int64_t first_row = a.batch.seq_begin[seq];
  const int index = position / m, begin = index * m;
  const int from = a.spec.overlap && index > 0 ? begin - m : begin, n = begin + m - from;
  const RawRows rows{a, first_row, a.batch.seq_slot[seq], a.batch.positions[first_row], from};
  const int oldest = from % static_cast<int>(a.tail.rows);
  const bool last = (position + 1) % m == 0;
  const TailRow tail_row(a, t, seq, position);
  const int warp = threadIdx.x / 32, r = static_cast<int>(a.rope.r), per_page = static_cast<int>(a.out.per_page);
  const bool finishes = last && warp < (a.index_key ? 1 : kQuads);
  let_next_come();
  uint2 norm = {0, 0};
  char* out = nullptr;
  const auto finish = [&](char* to) {
    if (a.index_key) return finish_key(entry, norm, dim, a.eps, r, turns, reinterpret_cast<bf16*>(to));
    finish_row(entry, warp, norm, dim, a.eps, turns, r, nullptr, to, a.out.format);
  };
  if (last) {
    if (warp == kQuads) make_turns(a.rope, begin, static_cast<int>(threadIdx.x) % 32, 32, turns);
    entry[threadIdx.x] = 1.0f;
    __syncthreads();
    if (finishes) {
      norm = load_quad(a.norm, warp, dim);
      const int64_t page = a.batch.seq_pages[seq * a.batch.max_pages + index / per_page];
      out = a.out.data + (page * per_page + index % per_page) * a.out.row_bytes;
      if (a.batch.rows <= kFewRows) finish(reinterpret_cast<char*>(second));
    }
  }
  previous_done();
  if (tail) tail_row.store();
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
  if (finishes) finish(out);
}

// Rows of key/value, a warp per 128 values.
__device__ void kv_rows(const Prepare& p, int block, float2 (*turns)[kMaxPairs]) {
  __shared__ float4 values[kFinishRows][kMaxRow / 4];
  __shared__ uint4 scratch[kFinishRows][2][kMaxRow / 8];  // a row as it leaves, and as it is cached
  const QkvArgs& a = p.qkv;
  const int part = threadIdx.x / 32 % kQuads, local = threadIdx.x / 32 / kQuads, d = static_cast<int>(a.d);
  const int64_t t = static_cast<int64_t>(block) * kFinishRows + local;
  const bool present = t < a.T;
  let_next_come();
  uint2 norm = {0, 0};
  char* in_ring = nullptr;
  if (present) {
    norm = load_quad(a.kv_norm, part, d);
    const int position = a.positions[t];
    if (part == 0) make_turns(a.rope, position, static_cast<int>(threadIdx.x) % 32, 32, turns[local]);
    const RingInsertArgs& insert = p.ring_insert;
    if (insert.ring.data) {
      const int64_t slot = insert.batch.seq_slot[insert.batch.row_seq[t]];
      in_ring = insert.ring.data + (slot * insert.ring.rows + position % static_cast<int>(insert.ring.rows)) * insert.ring.row_bytes;
    }
  }
  bf16* const row = a.kv + t * d;
  float* const mine = reinterpret_cast<float*>(values[local]);
#pragma unroll 1
  for (int pass = a.T <= kFewRows ? 0 : 1; pass < 2; ++pass) {
    const bool real = pass == 1;
    if (real) previous_done();
    float x[4];
    unpack_four(!real ? uint2{0x3f803f80u, 0x3f803f80u} : present ? load_quad(row, part, d) : uint2{0, 0}, x);
    if (real) __syncthreads();  // the rehearsal has been read
    *reinterpret_cast<float4*>(mine + element_of(part)) = {x[0], x[1], x[2], x[3]};
    __syncthreads();
    if (!present) continue;
    finish_row(mine, part, norm, d, a.eps, turns[local], static_cast<int>(a.rope.r), real ? row : reinterpret_cast<bf16*>(scratch[local][0]),
               real || !in_ring ? in_ring : reinterpret_cast<char*>(scratch[local][1]), p.ring_insert.ring.format);
  }
}

// Query i of T * H.
__device__ void head(const QkvArgs& a, int64_t i, float2* turns) {
  let_next_come();
  if (i >= a.T * a.H) return previous_done();
  const int d = static_cast<int>(a.d);
  make_turns(a.rope, a.positions[i / a.H], static_cast<int>(threadIdx.x % 32), 32, turns);
  __syncwarp();
  bf16* const row = a.q + i * d;
#pragma unroll 1
  for (int pass = a.T <= kFewRows ? 0 : 1; pass < 2; ++pass) {
    const int there = pass == 0 ? 0 : d;  // nothing is loaded or stored
    if (pass == 1) previous_done();
    float x[kQuads][4];
    load_row(row, there, x);
    // The published BF16 chain; the mean's sum in FP32.
    float squares = pass == 0 ? 1.0f : 0.0f;
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
    store_row(x, there, row);
  }
}

__device__ void index_head(const IndexSelectArgs& a, int64_t i, float2* turns) {
  let_next_come();
  if (i >= a.batch.rows * a.heads) return previous_done();
  const int e = static_cast<int>(a.e);
  make_turns(a.rope, a.batch.positions[i / a.heads], static_cast<int>(threadIdx.x % 32), 32, turns);
  __syncwarp();
  bf16* const row = a.q + i * e;
#pragma unroll 1
  for (int pass = a.batch.rows <= kFewRows ? 0 : 1; pass < 2; ++pass) {
    const int there = pass == 0 ? 0 : e;
    if (pass == 1) previous_done();
    float x[4];
    unpack_four(load_quad(row, 0, there), x);
    finish_index({x[0], x[1], x[2], x[3]}, e, static_cast<int>(a.rope.r), turns, there, row);
  }
}

__global__ void __launch_bounds__(kThreads) prepare_kernel(const __grid_constant__ Params q) {
  __shared__ float2 turns[kWarps][kMaxPairs];
  int block = blockIdx.x;
  const int warp = threadIdx.x / 32, which = block < q.compress_blocks[0] ? 0 : 1;
  if (which == 1) block -= q.compress_blocks[0];
  if (block < q.compress_blocks[which]) return compress_row(q.p.compress[which], block, q.p.tails, turns[0]);
  block -= q.compress_blocks[1];
  if (block < q.kv_blocks) return kv_rows(q.p, block, turns);
  block -= q.kv_blocks;
  if (block < q.head_blocks) return head(q.p.qkv, static_cast<int64_t>(block) * kWarps + warp, turns[warp]);
  index_head(q.p.index, static_cast<int64_t>(block - q.head_blocks) * kWarps + warp, turns[warp]);
}

// The last tail.rows rows of every sequence, after all entries were made.
__global__ void __launch_bounds__(kThreads) tail_kernel(const CompressArgs a) {
  wait_for_previous();
  const int64_t t = blockIdx.x;
  const int seq = a.batch.row_seq[t];
  if (t < a.batch.seq_begin[seq + 1] - a.tail.rows) return;
  TailRow(a, t, seq, a.batch.positions[t]).store();
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
    q.kv_blocks = static_cast<int32_t>(ceil_div<int64_t>(p.qkv.T, kFinishRows));
    q.head_blocks = static_cast<int32_t>(ceil_div<int64_t>(p.qkv.T * p.qkv.H, kWarps));
    grid += q.kv_blocks + q.head_blocks;
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
