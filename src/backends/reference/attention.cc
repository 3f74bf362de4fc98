// Queries, keys and the attention itself.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/reference/kernels.h"
#include "backends/reference/matrix.h"
#include "backends/reference/rotate.h"
#include "formats/kv_row.h"
#include "ops/check.h"

namespace dsv4::reference {
namespace {

// The published BF16 chain: bf(q^2), mean, + eps, rsqrt, product, each rounded.
void head_norm(bf16* q, int64_t d, float eps) {
  double sum = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    const float v = to_float(q[i]);
    sum += static_cast<double>(round_bf16(v * v));
  }
  const float mean = round_bf16(static_cast<float>(sum / static_cast<double>(d)));
  const float r = round_bf16(1.0f / std::sqrt(round_bf16(mean + eps)));
  for (int64_t i = 0; i < d; ++i) q[i] = to_bf16(to_float(q[i]) * r);
}

void load_row(const bf16* row, int64_t d, float* out) {
  for (int64_t i = 0; i < d; ++i) out[i] = to_float(row[i]);
}

// A row of the cache; `row` has room for it as BF16.
void load_cached(const AttentionArgs& a, const char* from, KvFormat format, bf16* row, float* out) {
  if (format == KvFormat::kBf16) return load_row(reinterpret_cast<const bf16*>(from), a.d, out);
  decode_kv_row(reinterpret_cast<const uint8_t*>(from), a.d, a.r, row);
  load_row(row, a.d, out);
}

// `parts`: also those of AttentionPartsArgs.
Status attention_rows(OpContext& ctx, const AttentionArgs& a, const AttentionPartsArgs* parts) {
  const char* const op = parts ? "attention_parts" : "attention";
  DSV4_TRY(check_kv_row(op, a.ring.format, a.d, a.r));
  DSV4_TRY(check_kv_row(op, a.entries.format, a.d, a.r));
  const BatchView& b = a.batch;
  const bool compressed = a.entries.data != nullptr;
  Workspace::Scope scratch(ctx.workspace);
  int64_t most = a.window;
  if (compressed && a.selected) most += a.topk;
  if (compressed && !a.selected) {
    for (int64_t t = 0; t < b.rows; ++t) {
      most = std::max(most, a.window + (b.positions[t] + 1) / a.ratio);
    }
  }
  DSV4_ASSIGN(float* keys, scratch.take<float>(most * a.d));  // [n, d]
  DSV4_ASSIGN(float* q, scratch.take<float>(a.d));
  DSV4_ASSIGN(bf16* widened, scratch.take<bf16>(a.d));
  DSV4_ASSIGN(float* p, scratch.take<float>(most));
  DSV4_ASSIGN(double* o, scratch.take<double>(a.d));
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.d)));

  for (int64_t t = 0; t < b.rows; ++t) {
    const int64_t seq = b.row_seq[t];
    const int64_t first_row = b.seq_begin[seq];
    const int64_t position = b.positions[t], first_position = b.positions[first_row];
    const int64_t slot = b.seq_slot[seq];

    // Gather: window in order of position, then compressed entries in order of index.
    int64_t n = 0;
    for (int64_t at = std::max<int64_t>(0, position - a.window + 1); at <= position; ++at, ++n) {
      if (at >= first_position) {
        load_row(a.kv + (first_row + at - first_position) * a.d, a.d, keys + n * a.d);
      } else {
        load_cached(a, a.ring.data + (slot * a.ring.rows + at % a.ring.rows) * a.ring.row_bytes, a.ring.format, widened,
                    keys + n * a.d);
      }
    }
    if (compressed) {
      const int64_t count = a.selected ? a.selected_count[t] : (position + 1) / a.ratio;
      for (int64_t i = 0; i < count; ++i, ++n) {
        const int64_t entry = a.selected ? a.selected[t * a.topk + i] : i;
        const int64_t page = b.seq_pages[seq * b.max_pages + entry / a.entries.per_page];
        const char* row = a.entries.data +
                          (page * a.entries.per_page + entry % a.entries.per_page) * a.entries.row_bytes;
        load_cached(a, row, a.entries.format, widened, keys + n * a.d);
      }
    }

    for (int64_t h = 0; h < a.H; ++h) {
      load_row(a.q + (t * a.H + h) * a.d, a.d, q);
      float top = -INFINITY;
      for (int64_t j = 0; j < n; ++j) {
        p[j] = static_cast<float>(dot(q, keys + j * a.d, a.d)) * scale;
        top = std::max(top, p[j]);
      }
      // The sink enters the denominator only; numerators are BF16 for the product with V.
      double sum = 0.0, denominator = std::exp(a.sink[h] - top);
      std::fill(o, o + a.d, 0.0);
      for (int64_t j = 0; j < n; ++j) {
        const float e = std::exp(p[j] - top);
        sum += static_cast<double>(e);
        denominator += static_cast<double>(e);
        const double numerator = static_cast<double>(round_bf16(e));
        for (int64_t i = 0; i < a.d; ++i) o[i] += numerator * static_cast<double>(keys[j * a.d + i]);
      }
      bf16* out = a.o + (t * a.H + h) * a.d;
      for (int64_t i = 0; i < a.d; ++i) out[i] = to_bf16(static_cast<float>(o[i] / denominator));
      if (!parts) continue;
      const int64_t at = t * a.H + h;
      parts->top[at] = top;
      parts->lse[at] = static_cast<float>(top + std::log(sum));
      for (int64_t i = 0; i < a.d; ++i) parts->sums[at * a.d + i] = static_cast<float>(o[i]);
    }
  }
  return {};
}

}  // namespace

Status rope(OpContext& ctx, const RopeArgs& a) {
  (void)ctx;
  for (int64_t t = 0; t < a.T; ++t) {
    for (int64_t h = 0; h < a.H; ++h) {
      rotate(a.x + (t * a.H + h + 1) * a.d - a.rope.r, a.rope, a.positions[t], a.inverse);
    }
  }
  return {};
}

Status qkv(OpContext& ctx, const QkvArgs& a) {
  for (int64_t t = 0; t < a.T; ++t) {
    for (int64_t h = 0; h < a.H; ++h) head_norm(a.q + (t * a.H + h) * a.d, a.d, a.eps);
  }
  DSV4_TRY(rope(ctx, {.x = a.q, .positions = a.positions, .rope = a.rope, .T = a.T, .H = a.H,
                      .d = a.d, .inverse = false}));
  DSV4_TRY(rms_norm(ctx, {.x = a.kv, .w = a.kv_norm, .y = a.kv, .T = a.T, .N = a.d, .eps = a.eps}));
  DSV4_TRY(rope(ctx, {.x = a.kv, .positions = a.positions, .rope = a.rope, .T = a.T, .H = 1,
                      .d = a.d, .inverse = false}));
  const int64_t rounded = a.d - a.rope.r;
  for (int64_t t = 0; t < a.T; ++t) {
    for (int64_t i = 0; i < rounded; i += kKv8Group) {
      kv8_round(a.kv + t * a.d + i, static_cast<int>(std::min<int64_t>(kKv8Group, rounded - i)));
    }
  }
  return {};
}

Status attention(OpContext& ctx, const AttentionArgs& a) { return attention_rows(ctx, a, nullptr); }
Status attention_parts(OpContext& ctx, const AttentionPartsArgs& a) { return attention_rows(ctx, a.attention, &a); }

Status ring_insert(OpContext& ctx, const RingInsertArgs& a) {
  (void)ctx;
  DSV4_TRY(check_kv_row("ring_insert", a.ring.format, a.d, a.r));
  const BatchView& b = a.batch;
  for (int64_t seq = 0; seq < b.sequences; ++seq) {
    const int64_t end = b.seq_begin[seq + 1];
    const int64_t slot = b.seq_slot[seq];
    for (int64_t t = std::max<int64_t>(b.seq_begin[seq], end - a.ring.rows); t < end; ++t) {
      char* row = a.ring.data + (slot * a.ring.rows + b.positions[t] % a.ring.rows) * a.ring.row_bytes;
      if (a.ring.format == KvFormat::kFp8Rope) {
        encode_kv_row(a.kv + t * a.d, a.d, a.r, reinterpret_cast<uint8_t*>(row));
      } else {
        memcpy(row, a.kv + t * a.d, static_cast<size_t>(a.d) * sizeof(bf16));
      }
    }
  }
  return {};
}

}  // namespace dsv4::reference
