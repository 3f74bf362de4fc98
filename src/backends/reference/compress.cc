// Compressor and indexer: pooled entries, index keys, and the selection of entries.
#include <algorithm>
#include <cmath>

#include "backends/reference/kernels.h"
#include "backends/reference/matrix.h"
#include "backends/reference/rotate.h"
#include "formats/kv_row.h"
#include "ops/check.h"

namespace dsv4::reference {
namespace {

// Raw rows of one sequence by position: the batch's own rows, older ones from the tail.
struct RawRows {
  const CompressArgs& a;
  int64_t first_row, first_position, slot;

  float c(int64_t position, int64_t column) const {
    if (position >= first_position) {
      return a.c[(first_row + position - first_position) * a.tail.columns + column];
    }
    return a.tail.c[tail_at(position, column)];
  }
  float s(int64_t position, int64_t column) const {
    if (position >= first_position) {
      return a.s[(first_row + position - first_position) * a.tail.columns + column] +
             a.ape[position % a.spec.ratio * a.tail.columns + column];
    }
    return a.tail.s[tail_at(position, column)];
  }
  int64_t tail_at(int64_t position, int64_t column) const {
    return (slot * a.tail.rows + position % a.tail.rows) * a.tail.columns + column;
  }
};

// entry[i] = sum over the pooled rows of softmax(s) * c, per channel.
void pool(const RawRows& rows, int64_t index, float* entry) {
  const CompressorSpec& spec = rows.a.spec;
  const int64_t m = spec.ratio, begin = index * m;
  // Overlap: the previous window's rows use columns [0, dim), this window's use [dim, 2 dim).
  const int64_t from = spec.overlap && index > 0 ? begin - m : begin;
  for (int64_t i = 0; i < spec.dim; ++i) {
    auto column = [&](int64_t position) { return spec.overlap && position >= begin ? spec.dim + i : i; };
    float top = -INFINITY;
    for (int64_t p = from; p < begin + m; ++p) top = std::max(top, rows.s(p, column(p)));
    float sum = 0.0f;
    for (int64_t p = from; p < begin + m; ++p) sum += std::exp(rows.s(p, column(p)) - top);
    float pooled = 0.0f;
    for (int64_t p = from; p < begin + m; ++p) {
      pooled += rows.c(p, column(p)) * (std::exp(rows.s(p, column(p)) - top) / sum);
    }
    entry[i] = pooled;
  }
}

const bf16* key_row(const IndexSelectArgs& a, int64_t seq, int64_t entry) {
  const int64_t page = a.batch.seq_pages[seq * a.batch.max_pages + entry / a.keys.per_page];
  return reinterpret_cast<const bf16*>(
      a.keys.data + (page * a.keys.per_page + entry % a.keys.per_page) * a.keys.row_bytes);
}

}  // namespace

Status compress(OpContext& ctx, const CompressArgs& a) {
  if (a.index_key) DSV4_TRY(check_kv_format("compress", a.out.format, KvFormat::kBf16));
  DSV4_TRY(check_kv_row("compress", a.out.format, a.spec.dim, a.rope.r));
  const bool fp8 = a.out.format == KvFormat::kFp8Rope;
  const BatchView& b = a.batch;
  const int64_t dim = a.spec.dim, m = a.spec.ratio;
  Workspace::Scope scratch(ctx.workspace);
  DSV4_ASSIGN(float* pooled, scratch.take<float>(dim));
  DSV4_ASSIGN(bf16* wide, scratch.take<bf16>(dim));
  for (int64_t seq = 0; seq < b.sequences; ++seq) {
    const int64_t begin = b.seq_begin[seq], end = b.seq_begin[seq + 1];
    if (begin == end) continue;
    const int64_t first = b.positions[begin], last = b.positions[end - 1];
    const RawRows rows{a, begin, first, b.seq_slot[seq]};
    for (int64_t entry = first / m; (entry + 1) * m - 1 <= last; ++entry) {
      pool(rows, entry, pooled);
      const int64_t page = b.seq_pages[seq * b.max_pages + entry / a.out.per_page];
      char* place = a.out.data + (page * a.out.per_page + entry % a.out.per_page) * a.out.row_bytes;
      bf16* out = fp8 ? wide : reinterpret_cast<bf16*>(place);
      for (int64_t i = 0; i < dim; ++i) out[i] = to_bf16(pooled[i]);
      DSV4_TRY(rms_norm(ctx, {.x = out, .w = a.norm, .y = out, .T = 1, .N = dim, .eps = a.eps}));
      rotate(out + dim - a.rope.r, a.rope, entry * m, false);
      if (a.index_key) {
        hadamard(out, dim, pooled);
        for (int64_t i = 0; i < dim; i += kIdx4Group) {
          idx4_round(out + i, static_cast<int>(std::min<int64_t>(kIdx4Group, dim - i)));
        }
      } else {
        const int64_t rounded = dim - a.rope.r;
        for (int64_t i = 0; i < rounded; i += kKv8Group) {
          kv8_round(out + i, static_cast<int>(std::min<int64_t>(kKv8Group, rounded - i)));
        }
        if (fp8) encode_kv_row(out, dim, a.rope.r, reinterpret_cast<uint8_t*>(place));
      }
    }
    for (int64_t p = std::max(first, last - a.tail.rows + 1); p <= last; ++p) {
      for (int64_t i = 0; i < a.tail.columns; ++i) {
        const int64_t at = rows.tail_at(p, i);
        a.tail.c[at] = rows.c(p, i);
        a.tail.s[at] = rows.s(p, i);
      }
    }
  }
  return {};
}

Status index_select(OpContext& ctx, const IndexSelectArgs& a) {
  const BatchView& b = a.batch;
  int64_t most = 1;
  for (int64_t t = 0; t < b.rows; ++t) most = std::max(most, (b.positions[t] + 1) / a.ratio);
  Workspace::Scope scratch(ctx.workspace);
  DSV4_ASSIGN(float* q, scratch.take<float>(a.heads * a.e));
  DSV4_ASSIGN(float* key, scratch.take<float>(a.e));
  DSV4_ASSIGN(float* score, scratch.take<float>(most));
  DSV4_ASSIGN(int32_t* order, scratch.take<int32_t>(most));
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.e) * static_cast<double>(a.heads)));
  for (int64_t t = 0; t < b.rows; ++t) {
    const int64_t seq = b.row_seq[t];
    for (int64_t h = 0; h < a.heads; ++h) {
      bf16* head = a.q + (t * a.heads + h) * a.e;
      rotate(head + a.e - a.rope.r, a.rope, b.positions[t], false);
      hadamard(head, a.e, key);
      for (int64_t i = 0; i < a.e; i += kIdx4Group) {
        idx4_round(head + i, static_cast<int>(std::min<int64_t>(kIdx4Group, a.e - i)));
      }
      for (int64_t i = 0; i < a.e; ++i) q[h * a.e + i] = to_float(head[i]);
    }
    const int64_t visible = (b.positions[t] + 1) / a.ratio;
    const int64_t count = std::min(a.topk, visible);
    for (int64_t j = 0; j < visible; ++j) {
      const bf16* row = key_row(a, seq, j);
      for (int64_t i = 0; i < a.e; ++i) key[i] = to_float(row[i]);
      double sum = 0.0;
      for (int64_t h = 0; h < a.heads; ++h) {
        const float w = round_bf16(to_float(a.weights[t * a.heads + h]) * scale);
        sum += std::max(0.0, dot(q + h * a.e, key, a.e)) * static_cast<double>(w);
      }
      score[j] = static_cast<float>(sum);
      order[j] = static_cast<int32_t>(j);
    }
    std::partial_sort(order, order + count, order + visible, [&](int32_t x, int32_t y) {
      return score[x] != score[y] ? score[x] > score[y] : x < y;
    });
    std::sort(order, order + count);
    for (int64_t i = 0; i < a.topk; ++i) a.selected[t * a.topk + i] = i < count ? order[i] : -1;
    a.selected_count[t] = static_cast<int32_t>(count);
  }
  return {};
}

}  // namespace dsv4::reference
