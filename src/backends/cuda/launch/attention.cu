#include <algorithm>
#include <cmath>
#include <numbers>

#include "backends/cuda/core.h"
#include "backends/cuda/device/attention.cuh"
#include "backends/cuda/device/attention_many.cuh"
#include "backends/cuda/launch/prepare.h"
#include "backends/cuda/ops.h"
#include "base/str.h"
#include "ops/check.h"

namespace dsv4::cuda {
namespace {

constexpr int64_t kPartialBytes = int64_t{512} << 20;  // longer batches take turns
constexpr int64_t kMaxRows = 32768;                    // of one grid

// Few rows: a block for each chunk and 16 heads, up to two at a time on a processor. Many: a block for each row and 64
// heads, which wins from about one row in 16 processors on, whatever the number of chunks. The result is the same.
constexpr int64_t kManyShare = 16;

template <int HM, int D, bool kFp8, bool kParts>
Status launch(OpContext& ctx, const AttentionParams& p, int64_t rows) {
  constexpr int kBytes = attention_shared_bytes<HM, D>();
  static_assert(kBytes <= kMaxSharedBytes);
  const auto kernel = attention_kernel<HM, D, kFp8, kParts>;
  DSV4_TRY(allow_shared(kernel, kBytes));
  const unsigned chunks = static_cast<unsigned>(p.max_chunks), cluster = p.cluster ? chunks : 2;  // one alone could not send to itself
  const dim3 grid(ceil_div(chunks, cluster) * cluster, static_cast<unsigned>(ceil_div<int64_t>(p.a.H, HM)),
                  static_cast<unsigned>(rows));
  if (p.cluster) DSV4_TRY(allow_clusters(kernel));
  return enqueue_clusters(ctx, "attention_kernel", kernel, grid, cluster, kAttentionThreads, kBytes, p);
}

template <int D, bool kFp8>
Status launch_heads(OpContext& ctx, const AttentionParams& p, int64_t rows, bool parts) {
  if (parts) return launch<16, D, kFp8, true>(ctx, p, rows);
  // Few rows: more blocks of fewer heads. The result is the same.
  const bool few = p.max_chunks * rows * ceil_div<int64_t>(p.a.H, 64) < kProcessors;
  return p.a.H <= 16 || few ? launch<16, D, kFp8, false>(ctx, p, rows) : launch<64, D, kFp8, false>(ctx, p, rows);
}
template <int D>
Status launch_rows(OpContext& ctx, const AttentionParams& p, int64_t rows, bool parts) {
  return p.a.ring.format == KvFormat::kFp8Rope ? launch_heads<D, true>(ctx, p, rows, parts) : launch_heads<D, false>(ctx, p, rows, parts);
}

// Many rows: one block per processor.
template <bool kFp8>
Status launch_many(OpContext& ctx, const AttentionParams& p, int64_t items) {
  static_assert(many::kSharedBytes<kFp8> <= kMaxSharedBytes);
  DSV4_TRY(allow_shared(many::attention_many_kernel<kFp8>, many::kSharedBytes<kFp8>));
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(items, kProcessors));
  return enqueue(ctx, "attention_many_kernel", many::attention_many_kernel<kFp8>, dim3(blocks), many::kThreads, many::kSharedBytes<kFp8>, p,
                 static_cast<int>(items));
}

// Chunks that left partial sums, joined.
template <bool kParts>
Status combine(OpContext& ctx, const AttentionParams& p, int64_t rows) {
  const size_t bytes = static_cast<size_t>(p.max_chunks) * sizeof(float2);
  DSV4_TRY(allow_shared(combine_kernel<kParts>, static_cast<int>(bytes)));
  return enqueue(ctx, "combine_kernel", combine_kernel<kParts>, dim3(static_cast<unsigned>(p.a.H), static_cast<unsigned>(rows)),
                 kCombineThreads, bytes, p);
}

// `parts`: also those of AttentionPartsArgs; then all chunks leave partial sums.
Status attention_rows(OpContext& ctx, const AttentionArgs& a, const RopeView& rope, const AttentionPartsArgs* parts) {
  const char* const op = parts ? "attention_parts" : "attention";
  DSV4_TRY(check_cached_row(op, a.ring.format, a.d, a.r));
  if (a.entries.data) DSV4_TRY(check_kv_format(op, a.entries.format, a.ring.format));
  const int64_t T = a.batch.rows;
  if (T == 0) return {};
  if (rope.r > 2 * kMaxPairs || rope.r % 4 != 0) {
    return Status(Code::kUnsupported, cat("cuda: ", op, ": RoPE dims ", rope.r, ": expected a multiple of 4 up to ", 2 * kMaxPairs));
  }
  int64_t most = a.window;
  if (a.entries.data) most += a.selected ? a.topk : a.batch.max_pages * a.entries.per_page;
  AttentionParams p{.a = a, .rope = rope, .max_chunks = static_cast<int32_t>(ceil_div<int64_t>(most, kChunk)),
                    .scale = static_cast<float>(std::numbers::log2e / std::sqrt(static_cast<double>(a.d)))};
  const bool fp8 = a.ring.format == KvFormat::kFp8Rope;
  if (!parts && a.d == many::kDim && a.H % many::kHeads == 0 && (!fp8 || a.r == many::kRopeDims)) {
    const int64_t items = T * (a.H / many::kHeads);
    if (kManyShare * items >= kProcessors) return fp8 ? launch_many<true>(ctx, p, items) : launch_many<false>(ctx, p, items);
  }
  if (parts) {
    p.sums = parts->sums;
    p.top = parts->top;
    p.lse = parts->lse;
  }
  p.cluster = !parts && p.max_chunks > 1 && p.max_chunks <= kMaxChunksOfCluster;
  const bool partial = parts || (p.max_chunks > 1 && !p.cluster);
  int64_t rows = std::min(T, kMaxRows);
  Workspace::Scope scratch(ctx.workspace);
  if (partial) {
    const int64_t per_row = p.max_chunks * a.H * a.d * static_cast<int64_t>(sizeof(float));
    rows = std::clamp<int64_t>(kPartialBytes / per_row, 1, rows);
    DSV4_ASSIGN(p.partial, scratch.take<float>(rows * p.max_chunks * a.H * a.d));
    DSV4_ASSIGN(p.stats, scratch.take<float2>(rows * p.max_chunks * a.H));
  }
  for (p.first_row = 0; p.first_row < T; p.first_row += rows) {
    const int64_t n = std::min(rows, T - p.first_row);
    switch (a.d) {
      case 64: DSV4_TRY(launch_rows<64>(ctx, p, n, parts)); break;
      case 128: DSV4_TRY(launch_rows<128>(ctx, p, n, parts)); break;
      case 192: DSV4_TRY(launch_rows<192>(ctx, p, n, parts)); break;
      case 256: DSV4_TRY(launch_rows<256>(ctx, p, n, parts)); break;
      case 512: DSV4_TRY(launch_rows<512>(ctx, p, n, parts)); break;
      default: return Status(Code::kUnsupported, cat("cuda: head dim ", a.d, ": expected 64, 128, 192, 256 or 512"));
    }
    if (partial) DSV4_TRY(parts ? combine<true>(ctx, p, n) : combine<false>(ctx, p, n));
  }
  return {};
}

}  // namespace

Status attention(OpContext& ctx, const AttentionArgs& a) { return attention_out(ctx, a, {}); }
Status attention_parts(OpContext& ctx, const AttentionPartsArgs& a) { return attention_rows(ctx, a.attention, {}, &a); }
Status attention_out(OpContext& ctx, const AttentionArgs& a, const RopeView& rope) { return attention_rows(ctx, a, rope, nullptr); }

}  // namespace dsv4::cuda
