// Queries and keys on their way to attention, one warp per vector: rope, qkv, ring_insert.
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/ops.h"
#include "backends/cuda/core.h"
#include "ops/check.h"

namespace dsv4::cuda {
namespace {

constexpr int kWarps = 8;

__global__ void rope_kernel(const RopeArgs a) {
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int half = static_cast<int>(a.rope.r / 2);
  if (i >= a.T * a.H * half) return;
  const int64_t row = i / half;
  const int pair = static_cast<int>(i % half);
  bf16* x = a.x + (row + 1) * a.d - a.rope.r + 2 * pair;
  const float angle = static_cast<float>(a.positions[row / a.H]) * a.rope.freqs[pair];
  float s, c;
  sincosf(angle, &s, &c);
  if (a.inverse) s = -s;
  const float re = to_float(x[0]), im = to_float(x[1]);
  x[0] = to_bf16(re * c - im * s);
  x[1] = to_bf16(re * s + im * c);
}

// Head h < H of row t is a query; head H is the row's key/value.
__global__ void __launch_bounds__(kWarps * 32) qkv_kernel(const QkvArgs a) {
  wait_for_previous();
  extern __shared__ float shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = static_cast<int>(a.d);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (i >= a.T * (a.H + 1)) return;
  const int64_t t = i / (a.H + 1), h = i % (a.H + 1);
  float* x = shared + warp * d;
  const int rope_at = d - static_cast<int>(a.rope.r);
  if (h < a.H) {
    bf16* row = a.q + (t * a.H + h) * d;
    load_row(row, d, x);
    // The published BF16 chain; the mean's sum in FP32.
    float squares = 0.0f;
    for (int k = lane; k < d; k += 32) squares += round_bf16(x[k] * x[k]);
    const float mean = round_bf16(warp_sum(squares) / static_cast<float>(d));
    const float r = round_bf16(1.0f / sqrtf(round_bf16(mean + a.eps)));
    for (int k = lane; k < d; k += 32) x[k] = round_bf16(x[k] * r);
    __syncwarp();
    rotate(x + rope_at, a.rope, a.positions[t], false);
    store_row(x, d, row);
    return;
  }
  bf16* row = a.kv + t * d;
  load_row(row, d, x);
  norm_row(x, a.kv_norm, d, a.eps);
  rotate(x + rope_at, a.rope, a.positions[t], false);
  kv8_row(x, rope_at);
  store_row(x, d, row);
}

__global__ void ring_insert_kernel(const RingInsertArgs a) {
  wait_for_previous();
  const int64_t t = blockIdx.x;
  const int seq = a.batch.row_seq[t];
  if (t < a.batch.seq_begin[seq + 1] - a.ring.rows) return;  // a later row takes this place
  const int64_t slot = a.batch.seq_slot[seq];
  uint32_t* to = reinterpret_cast<uint32_t*>(a.ring.data +
                                             (slot * a.ring.rows + a.batch.positions[t] % a.ring.rows) * a.ring.row_bytes);
  const uint32_t* from = reinterpret_cast<const uint32_t*>(a.kv + t * a.d);
  for (int i = threadIdx.x; i < a.d / 2; i += blockDim.x) to[i] = from[i];
}

}  // namespace

Status rope(OpContext& ctx, const RopeArgs& a) {
  const int64_t n = a.T * a.H * (a.rope.r / 2);
  if (n == 0) return {};
  return enqueue(ctx, "rope_kernel", rope_kernel, static_cast<unsigned>(ceil_div<int64_t>(n, 256)), 256, 0, a);
}

Status qkv(OpContext& ctx, const QkvArgs& a) {
  if (a.T == 0) return {};
  const int bytes = kWarps * static_cast<int>(a.d * static_cast<int64_t>(sizeof(float)));
  DSV4_TRY(allow_shared(qkv_kernel, bytes));
  return enqueue(ctx, "qkv_kernel", qkv_kernel, static_cast<unsigned>(ceil_div<int64_t>(a.T * (a.H + 1), kWarps)), kWarps * 32, static_cast<size_t>(bytes), a);
}

Status ring_insert(OpContext& ctx, const RingInsertArgs& a) {
  DSV4_TRY(check_kv_format("ring_insert", a.ring.format, KvFormat::kBf16));
  if (a.batch.rows == 0) return {};
  return enqueue(ctx, "ring_insert_kernel", ring_insert_kernel, static_cast<unsigned>(a.batch.rows), 128, 0, a);
}

}  // namespace dsv4::cuda
