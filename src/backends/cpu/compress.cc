// Compressor and indexer: pooled entries, index keys, and the selection of entries.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/cpu/core.h"
#include "backends/cpu/ops.h"
#include "backends/cpu/rotate.h"
#include "backends/reference/kernels.h"
#include "backends/reference/rotate.h"
#include "formats/kv_row.h"
#include "ops/check.h"

namespace dsv4::cpu {
namespace {

constexpr int64_t kMaxRopeDims = 512;
constexpr int64_t kKeyBlock = 48;

// The entries that this batch finishes, sequence after sequence.
struct Finished {
  int64_t seq, entry;
};

int64_t finished_of(const BatchView& b, int64_t seq, int64_t ratio, int64_t* first) {
  const int64_t begin = b.seq_begin[seq], end = b.seq_begin[seq + 1];
  if (begin == end) return 0;
  *first = b.positions[begin] / ratio;
  return std::max<int64_t>(0, (b.positions[end - 1] + 1) / ratio - *first);
}

Finished find_finished(const CompressArgs& a, int64_t item) {
  for (int64_t seq = 0;; ++seq) {
    int64_t first = 0;
    const int64_t n = finished_of(a.batch, seq, a.spec.ratio, &first);
    if (item < n) return {seq, first + item};
    item -= n;
  }
}

// Raw rows of one sequence by position: the batch's own rows, older ones from the tail.
PoolRow raw_row(const CompressArgs& a, int64_t seq, int64_t position) {
  const int64_t begin = a.batch.seq_begin[seq], first = a.batch.positions[begin], columns = a.tail.columns;
  if (position >= first) {
    const int64_t at = (begin + position - first) * columns;
    return {a.c + at, a.s + at, a.ape + position % a.spec.ratio * columns};
  }
  const int64_t at = (a.batch.seq_slot[seq] * a.tail.rows + position % a.tail.rows) * columns;
  return {a.tail.c + at, a.tail.s + at, nullptr};
}

char* entry_row(const PagedView& view, const BatchView& b, int64_t seq, int64_t entry) {
  const int64_t page = b.seq_pages[seq * b.max_pages + entry / view.per_page];
  return view.data + (page * view.per_page + entry % view.per_page) * view.row_bytes;
}

void idx4(bf16* x, int64_t n) {
  for (int64_t i = 0; i < n; i += kIdx4Group) {
    idx4_round(x + i, static_cast<int>(std::min<int64_t>(kIdx4Group, n - i)));
  }
}

// `pooled` and `wide` hold an entry each.
void make_entry(const Kernels& k, const CompressArgs& a, const Finished& f, PoolRow* rows, float* pooled, bf16* wide) {
  const int64_t m = a.spec.ratio, dim = a.spec.dim, begin = f.entry * m;
  const int64_t from = a.spec.overlap && f.entry > 0 ? begin - m : begin;
  int64_t n = 0;
  for (int64_t p = from; p < begin + m; ++p) {
    PoolRow row = raw_row(a, f.seq, p);
    // Overlap: this window's rows use the second half of the columns.
    const int64_t shift = a.spec.overlap && p >= begin ? dim : 0;
    row.c += shift;
    row.s += shift;
    if (row.ape) row.ape += shift;
    rows[n++] = row;
  }
  for (int64_t i = 0; i < dim; i += 16) k.attention.pool16(rows, n, i, pooled + i);

  char* const place = entry_row(a.out, a.batch, f.seq, f.entry);
  const bool fp8 = a.out.format == KvFormat::kFp8Rope;
  bf16* out = fp8 ? wide : reinterpret_cast<bf16*>(place);
  k.linear.round_bf16(pooled, dim, out);
  k.rows.rms_norm(out, a.norm, dim, a.eps, out);
  const int64_t rounded = dim - a.rope.r;
  float table[kMaxRopeDims];
  fill_rotation(a.rope, begin, false, table);
  rotate(out + rounded, a.rope.r, table);
  if (a.index_key) {
    reference::hadamard(out, dim, pooled);
    idx4(out, dim);
  } else {
    for (int64_t i = 0; i < rounded; i += kKv8Group) {
      kv8_round(out + i, static_cast<int>(std::min<int64_t>(kKv8Group, rounded - i)));
    }
    if (fp8) encode_kv_row(out, dim, a.rope.r, reinterpret_cast<uint8_t*>(place));
  }
}

// The batch's rows that the tail keeps.
void update_tail(const CompressArgs& a, int64_t seq, int64_t position) {
  const int64_t columns = a.tail.columns;
  const PoolRow row = raw_row(a, seq, position);
  const int64_t at = (a.batch.seq_slot[seq] * a.tail.rows + position % a.tail.rows) * columns;
  memcpy(a.tail.c + at, row.c, static_cast<size_t>(columns) * sizeof(float));
  for (int64_t i = 0; i < columns; ++i) a.tail.s[at + i] = row.s[i] + row.ape[i];
}

// The best `count` of n scores as ascending indices; the lowest index on ties. `order` holds n floats.
void select_best(const float* score, int64_t n, int64_t count, float* order, int32_t* out) {
  if (count == n) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<int32_t>(i);
    return;
  }
  if (count == 0) return;
  // A NaN compares with nothing; it ranks last.
  for (int64_t i = 0; i < n; ++i) order[i] = std::isnan(score[i]) ? -INFINITY : score[i];
  std::nth_element(order, order + count - 1, order + n, [](float x, float y) { return x > y; });
  const float limit = order[count - 1];
  int64_t above = 0;
  for (int64_t i = 0; i < n; ++i) above += score[i] > limit;
  int64_t ties = count - above, taken = 0;
  for (int64_t i = 0; i < n && taken < count; ++i) {
    if (score[i] > limit) {
      out[taken++] = static_cast<int32_t>(i);
    } else if (ties > 0 && !(score[i] < limit)) {
      --ties;
      out[taken++] = static_cast<int32_t>(i);
    }
  }
}

struct IndexScratch {
  float* q;        // [e, heads16]
  float* weights;  // [heads16]
  float* row;      // [e]
  float* keys;     // [48, e + 16]
  float* s;        // [48, heads16]
};

// RoPE, Hadamard and idx4 of one head, and its place in q.
void prepare_head(const IndexSelectArgs& a, int64_t t, int64_t h, int64_t heads16, const float* table,
                  float* row, const IndexScratch& s) {
  if (h >= a.heads) {
    for (int64_t i = 0; i < a.e; ++i) s.q[i * heads16 + h] = 0.0f;
    s.weights[h] = 0.0f;
    return;
  }
  bf16* head = a.q + (t * a.heads + h) * a.e;
  rotate(head + a.e - a.rope.r, a.rope.r, table);
  reference::hadamard(head, a.e, row);
  idx4(head, a.e);
  for (int64_t i = 0; i < a.e; ++i) s.q[i * heads16 + h] = to_float(head[i]);
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.e) * static_cast<double>(a.heads)));
  s.weights[h] = round_bf16(to_float(a.weights[t * a.heads + h]) * scale);
}

}  // namespace

Status compress(OpContext& ctx, const CompressArgs& a) {
  if (a.index_key) DSV4_TRY(check_kv_format("compress", a.out.format, KvFormat::kBf16));
  DSV4_TRY(check_kv_row("compress", a.out.format, a.spec.dim, a.rope.r));
  if (a.spec.dim % 16 != 0 || a.rope.r > kMaxRopeDims) return reference::compress(ctx, a);
  Core& c = core(ctx);
  const BatchView& b = a.batch;
  const int threads = c.pool.threads();
  int64_t entries = 0;
  for (int64_t seq = 0; seq < b.sequences; ++seq) {
    int64_t first = 0;
    entries += finished_of(b, seq, a.spec.ratio, &first);
  }
  Workspace::Scope scope(ctx.workspace);
  DSV4_ASSIGN(float* pooled, scope.take<float>(threads * a.spec.dim));
  DSV4_ASSIGN(bf16* wide, scope.take<bf16>(threads * a.spec.dim));
  DSV4_ASSIGN(PoolRow* rows, scope.take<PoolRow>(threads * 2 * a.spec.ratio));
  c.pool.run([&](int worker) {
    const IndexRange mine = split_range(entries, threads, worker);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      make_entry(c.kernels, a, find_finished(a, i), rows + worker * 2 * a.spec.ratio, pooled + worker * a.spec.dim,
                 wide + worker * a.spec.dim);
    }
  });
  // Entries have read the tail's old rows.
  c.pool.run([&](int worker) {
    for (int64_t seq = 0; seq < b.sequences; ++seq) {
      const int64_t begin = b.seq_begin[seq], end = b.seq_begin[seq + 1];
      if (begin == end) continue;
      const int64_t last = b.positions[end - 1];
      const int64_t from = std::max<int64_t>(b.positions[begin], last - a.tail.rows + 1);
      const IndexRange kept = split_range(last - from + 1, threads, worker);
      for (int64_t i = kept.begin; i < kept.end; ++i) update_tail(a, seq, from + i);
    }
  });
  return {};
}

Status index_select(OpContext& ctx, const IndexSelectArgs& a) {
  if (a.rope.r > kMaxRopeDims) return reference::index_select(ctx, a);
  const BatchView& b = a.batch;
  if (b.rows == 0) return {};
  Core& c = core(ctx);
  const AttentionKernels& k = c.kernels.attention;
  const int threads = c.pool.threads();
  const int64_t heads16 = ceil_div(a.heads, 16) * 16, key_stride = a.e + 16;
  int64_t most = 1;
  for (int64_t t = 0; t < b.rows; ++t) most = std::max(most, (b.positions[t] + 1) / a.ratio);
  // Few rows: all workers score one row together.
  const bool together = b.rows < 2 * threads;
  const int64_t copies = together ? 1 : threads;
  Workspace::Scope scope(ctx.workspace);
  DSV4_ASSIGN(float* score, scope.take<float>(copies * most));
  DSV4_ASSIGN(float* order, scope.take<float>(copies * most));
  const int64_t shared_floats = (a.e + 1) * heads16;
  const int64_t own_floats = a.e + kKeyBlock * (key_stride + heads16);
  DSV4_ASSIGN(float* shared, scope.take<float>(copies * shared_floats));
  DSV4_ASSIGN(float* own, scope.take<float>(threads * own_floats));

  auto score_block = [&](int64_t t, int64_t item, const IndexScratch& s, float* out) {
    const int64_t visible = (b.positions[t] + 1) / a.ratio;
    const int64_t first = item * kKeyBlock, n = std::min(kKeyBlock, visible - first);
    for (int64_t j = 0; j < n; ++j) {
      k.widen(reinterpret_cast<const bf16*>(entry_row(a.keys, b, b.row_seq[t], first + j)), a.e, s.keys + j * key_stride);
    }
    k.scores(s.q, heads16, s.keys, key_stride, n, a.e, s.s);
    k.index_scores(s.s, heads16, n, s.weights, out + first);
  };
  auto finish = [&](int64_t t, const float* scores, float* scratch) {
    const int64_t visible = (b.positions[t] + 1) / a.ratio, count = std::min(a.topk, visible);
    int32_t* out = a.selected + t * a.topk;
    select_best(scores, visible, count, scratch, out);
    std::fill(out + count, out + a.topk, -1);
    a.selected_count[t] = static_cast<int32_t>(count);
  };

  const auto scratch = [&](int worker) {
    float* mine = own + worker * own_floats;
    float* prepared = shared + (together ? 0 : worker) * shared_floats;
    return IndexScratch{.q = prepared, .weights = prepared + a.e * heads16, .row = mine, .keys = mine + a.e,
                        .s = mine + a.e + kKeyBlock * key_stride};
  };
  // Part `part` of `parts` of a row's heads, and of its blocks of entries.
  const auto prepare = [&](int64_t t, const IndexScratch& s, int parts, int part) {
    float table[kMaxRopeDims];
    fill_rotation(a.rope, b.positions[t], false, table);
    const IndexRange heads = split_range(heads16, parts, part);
    for (int64_t h = heads.begin; h < heads.end; ++h) prepare_head(a, t, h, heads16, table, s.row, s);
  };
  const auto score_blocks = [&](int64_t t, const IndexScratch& s, int parts, int part, float* out) {
    const IndexRange range = split_range(ceil_div((b.positions[t] + 1) / a.ratio, kKeyBlock), parts, part);
    for (int64_t i = range.begin; i < range.end; ++i) score_block(t, i, s, out);
  };
  if (together) {
    for (int64_t t = 0; t < b.rows; ++t) {
      c.pool.run([&](int worker) { prepare(t, scratch(worker), threads, worker); });
      c.pool.run([&](int worker) { score_blocks(t, scratch(worker), threads, worker, score); });
      finish(t, score, order);
    }
    return {};
  }
  c.pool.run([&](int worker) {
    for (int64_t t = worker; t < b.rows; t += threads) {
      const IndexScratch s = scratch(worker);
      prepare(t, s, 1, 0);
      score_blocks(t, s, 1, 0, score + worker * most);
      finish(t, score + worker * most, order + worker * most);
    }
  });
  return {};
}

}  // namespace dsv4::cpu
