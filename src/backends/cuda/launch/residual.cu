// Into the residual streams: embedding, the MTP block's input; and RMSNorm.
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/ops.h"
#include "backends/cuda/pack.h"
#include "base/str.h"

namespace dsv4::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void embed_kernel(const int32_t* tokens, const uint32_t* table, uint32_t* streams, int hc, int pairs) {
  wait_for_previous();
  const int64_t t = blockIdx.x;
  const uint32_t* row = table + static_cast<int64_t>(tokens[t]) * pairs;
  for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
    for (int j = 0; j < hc; ++j) streams[(t * hc + j) * pairs + i] = row[i];
  }
}

__global__ void stream_add_kernel(const uint32_t* e, const uint32_t* h, uint32_t* streams, int hc, int pairs) {
  wait_for_previous();
  const int64_t row = blockIdx.y;  // token * hc + stream
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pairs) return;
  const float2 a = unpack2(e[row / hc * pairs + i]), b = unpack2(h[row * pairs + i]);
  streams[row * pairs + i] = pack2(a.x + b.x, a.y + b.y);
}

__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const uint32_t* x, const uint32_t* w, uint32_t* y, int pairs,
                                                            float eps) {
  wait_for_previous();
  __shared__ float sums[kThreads / 32];
  extern __shared__ float2 row[];
  const int64_t t = blockIdx.x;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < pairs; i += kThreads) {
    row[i] = unpack2(x[t * pairs + i]);
    squares = __fmaf_rn(row[i].x, row[i].x, __fmaf_rn(row[i].y, row[i].y, squares));
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = squares;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < kThreads / 32; ++w) sum += sums[w];
  const float r = 1.0f / sqrtf(sum / static_cast<float>(2 * pairs) + eps);
  for (int i = threadIdx.x; i < pairs; i += kThreads) {
    const float2 v = unpack2(w[i]);
    y[t * pairs + i] = pack2(row[i].x * r * v.x, row[i].y * r * v.y);
  }
}

const uint32_t* words(const bf16* p) { return reinterpret_cast<const uint32_t*>(p); }
uint32_t* words(bf16* p) { return reinterpret_cast<uint32_t*>(p); }

Status check_even(std::string_view op, int64_t n) {
  if (n % 2 == 0) return {};
  return Status(Code::kUnsupported, cat("cuda: ", op, ": ", n, " values in a row: expected an even number"));
}

unsigned pair_blocks(int64_t D) { return static_cast<unsigned>(ceil_div<int64_t>(D / 2, kThreads)); }

}  // namespace

Status embed(OpContext& ctx, const EmbedArgs& a) {
  if (a.T == 0) return {};
  DSV4_TRY(check_even("embed", a.D));
  return enqueue(ctx, "embed_kernel", embed_kernel, static_cast<unsigned>(a.T), kThreads, 0, a.tokens, reinterpret_cast<const uint32_t*>(matrix(a.table).codes), words(a.streams), static_cast<int>(a.hc), static_cast<int>(a.D / 2));
}

Status stream_add(OpContext& ctx, const StreamAddArgs& a) {
  if (a.T == 0) return {};
  DSV4_TRY(check_even("stream_add", a.D));
  const dim3 grid(pair_blocks(a.D), static_cast<unsigned>(a.T * a.hc));
  return enqueue(ctx, "stream_add_kernel", stream_add_kernel, grid, kThreads, 0, words(a.e), words(a.h), words(a.streams), static_cast<int>(a.hc), static_cast<int>(a.D / 2));
}

Status rms_norm(OpContext& ctx, const RmsNormArgs& a) {
  if (a.T == 0) return {};
  DSV4_TRY(check_even("rms_norm", a.N));
  const int bytes = static_cast<int>(a.N * static_cast<int64_t>(sizeof(float)));
  DSV4_TRY(allow_shared(rms_norm_kernel, bytes));
  return enqueue(ctx, "rms_norm_kernel", rms_norm_kernel, static_cast<unsigned>(a.T), kThreads, static_cast<size_t>(bytes), words(a.x), words(a.w), words(a.y), static_cast<int>(a.N / 2), a.eps);
}

}  // namespace dsv4::cuda
