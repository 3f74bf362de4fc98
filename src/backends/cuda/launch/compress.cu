// compress: pooled entries and index keys, then the tail.
#include "backends/cuda/core.h"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/ops.h"
#include "ops/check.h"

namespace dsv4::cuda {
namespace {

constexpr int kThreads = 512;

// Raw rows of one sequence by position: the batch's own rows, older ones from the tail.
struct RawRows {
  const CompressArgs& a;
  int64_t first_row;
  int first_position;
  int64_t slot;

  __device__ float c(int position, int column) const {
    if (position >= first_position) return a.c[(first_row + position - first_position) * a.tail.columns + column];
    return a.tail.c[at(position, column)];
  }
  __device__ float s(int position, int column) const {
    if (position >= first_position) {
      return a.s[(first_row + position - first_position) * a.tail.columns + column] +
             a.ape[position % a.spec.ratio * a.tail.columns + column];
    }
    return a.tail.s[at(position, column)];
  }
  __device__ int64_t at(int position, int column) const {
    return (slot * a.tail.rows + position % a.tail.rows) * a.tail.columns + column;
  }
};

__device__ void store_tail(const CompressArgs& a, int64_t t, int seq) {
  const int position = a.batch.positions[t];
  const int64_t to = (static_cast<int64_t>(a.batch.seq_slot[seq]) * a.tail.rows + position % a.tail.rows) * a.tail.columns;
  const int64_t from = t * a.tail.columns, ape = position % a.spec.ratio * a.tail.columns;
  for (int i = threadIdx.x; i < a.tail.columns; i += blockDim.x) {
    a.tail.c[to + i] = a.c[from + i];
    a.tail.s[to + i] = a.s[from + i] + a.ape[ape + i];
  }
}

// One block per row of the batch; works where the row is the last of its window. kTail: the row also
// enters the tail, for batches of one row per sequence, where no other row can still need its place.
template <bool kTail>
__global__ void __launch_bounds__(kThreads) compress_kernel(const CompressArgs a) {
  wait_for_previous();
  extern __shared__ float entry[];
  const int64_t t = blockIdx.x;
  const int seq = a.batch.row_seq[t], position = a.batch.positions[t];
  const int m = static_cast<int>(a.spec.ratio), dim = static_cast<int>(a.spec.dim);
  if constexpr (kTail) store_tail(a, t, seq);
  if ((position + 1) % m != 0) return;
  const int64_t first_row = a.batch.seq_begin[seq];
  const RawRows rows{a, first_row, a.batch.positions[first_row], a.batch.seq_slot[seq]};
  const int index = position / m, begin = index * m;
  const int from = a.spec.overlap && index > 0 ? begin - m : begin;
  for (int i = threadIdx.x; i < dim; i += kThreads) {
    const auto column = [&](int p) { return a.spec.overlap && p >= begin ? dim + i : i; };
    float top = -INFINITY;
    for (int p = from; p < begin + m; ++p) top = fmaxf(top, rows.s(p, column(p)));
    float sum = 0.0f, pooled = 0.0f;
    for (int p = from; p < begin + m; ++p) {
      const float e = expf(rows.s(p, column(p)) - top);
      sum += e;
      pooled = __fmaf_rn(rows.c(p, column(p)), e, pooled);
    }
    entry[i] = round_bf16(pooled / sum);
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  norm_row(entry, a.norm, dim, a.eps);
  rotate(entry + dim - a.rope.r, a.rope, begin, false);
  if (a.index_key) {
    hadamard(entry, dim);
    idx4_row(entry, dim);
  } else {
    kv8_row(entry, dim - static_cast<int>(a.rope.r));
  }
  const int64_t page = a.batch.seq_pages[seq * a.batch.max_pages + index / a.out.per_page];
  store_row(entry, dim,
            reinterpret_cast<bf16*>(a.out.data + (page * a.out.per_page + index % a.out.per_page) * a.out.row_bytes));
}

// The last tail.rows rows of every sequence, after all entries were made.
__global__ void __launch_bounds__(kThreads) tail_kernel(const CompressArgs a) {
  wait_for_previous();
  const int64_t t = blockIdx.x;
  const int seq = a.batch.row_seq[t];
  if (t < a.batch.seq_begin[seq + 1] - a.tail.rows) return;
  store_tail(a, t, seq);
}

}  // namespace

Status compress(OpContext& ctx, const CompressArgs& a) {
  DSV4_TRY(check_kv_format("compress", a.out.format, KvFormat::kBf16));
  if (a.batch.rows == 0) return {};
  const unsigned grid = static_cast<unsigned>(a.batch.rows);
  const size_t bytes = static_cast<size_t>(a.spec.dim) * sizeof(float);
  if (a.batch.rows == a.batch.sequences) {
    return enqueue(ctx, "compress_kernel", compress_kernel<true>, grid, kThreads, bytes, a);
  }
  DSV4_TRY(enqueue(ctx, "compress_kernel", compress_kernel<false>, grid, kThreads, bytes, a));
  return enqueue(ctx, "tail_kernel", tail_kernel, grid, kThreads, 0, a);
}

}  // namespace dsv4::cuda
