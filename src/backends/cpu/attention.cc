// Queries, keys, and the attention itself.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "backends/cpu/core.h"
#include "backends/cpu/multiply.h"
#include "backends/cpu/ops.h"
#include "backends/cpu/rotate.h"
#include "formats/quantise.h"
#include "ops/check.h"

namespace dsv4::cpu {
namespace {

// Heads that one worker normalises and rotates at a time.
constexpr int64_t kHeadBlock = 8;
constexpr int64_t kMaxRopeDims = 512;

Status check_rope(std::string_view op, const RopeView& rope) {
  if (rope.r <= kMaxRopeDims) return {};
  return Status(Code::kUnsupported, std::string(op) + ": at most 512 RoPE dims");
}

// Scratch of one query row. Heads are padded to H16, columns to d16, both multiples of 16; rows of keys
// lie a little more than that apart, so that rows of equal column do not share cache sets.
struct Scratch {
  float* keys;         // [n, key_stride]
  float* q;            // [d, H16]
  float* s;            // [n, H16]: scores, then numerators
  float* sink;         // [H16]
  Softmax16 softmax;   // [H16] each
};

struct Shape {
  int64_t H, d, H16, d16, key_stride;
  explicit Shape(const AttentionArgs& a)
      : H(a.H), d(a.d), H16(ceil_div(a.H, 16) * 16), d16(ceil_div(a.d, 16) * 16), key_stride(d16 + 16) {}
};

constexpr int64_t kColumnBlock = 64;
constexpr int64_t kKeyBlock = 48;

// Where row t's keys come from: window positions [first, position], then `count` entries.
struct KeyRows {
  const AttentionArgs& a;
  int64_t t, seq, first_row, first_position, slot, first, window, count;

  KeyRows(const AttentionArgs& args, int64_t row) : a(args), t(row) {
    const BatchView& b = a.batch;
    seq = b.row_seq[t];
    first_row = b.seq_begin[seq];
    first_position = b.positions[first_row];
    slot = b.seq_slot[seq];
    const int64_t position = b.positions[t];
    first = std::max<int64_t>(0, position - a.window + 1);
    window = position - first + 1;
    count = 0;
    if (a.entries.data) count = a.selected ? a.selected_count[t] : (position + 1) / a.ratio;
  }
  int64_t size() const { return window + count; }

  // As floats; d of them.
  void load(const AttentionKernels& k, int64_t j, float* to) const {
    const auto [row, format] = (*this)[j];
    if (format == KvFormat::kFp8Rope) {
      k.widen_kv(reinterpret_cast<const uint8_t*>(row), a.d, a.r, to);
    } else {
      k.widen(reinterpret_cast<const bf16*>(row), a.d, to);
    }
  }

 private:
  std::pair<const char*, KvFormat> operator[](int64_t j) const {
    if (j < window) {
      const int64_t at = first + j;
      if (at >= first_position) {
        return {reinterpret_cast<const char*>(a.kv + (first_row + at - first_position) * a.d), KvFormat::kBf16};
      }
      return {a.ring.data + (slot * a.ring.rows + at % a.ring.rows) * a.ring.row_bytes, a.ring.format};
    }
    const int64_t i = j - window;
    const int64_t entry = a.selected ? a.selected[t * a.topk + i] : i;
    const int64_t page = a.batch.seq_pages[seq * a.batch.max_pages + entry / a.entries.per_page];
    return {a.entries.data + (page * a.entries.per_page + entry % a.entries.per_page) * a.entries.row_bytes, a.entries.format};
  }
};

// The stages of one row; each takes a range of independent items.
class RowAttention {
 public:
  RowAttention(const AttentionKernels& kernels, const AttentionArgs& a, const AttentionPartsArgs* parts, int64_t t, const Scratch& s)
      : k_(kernels), a_(a), parts_(parts), shape_(a), rows_(a, t), s_(s) {}

  int64_t gather_items() const { return ceil_div(rows_.size(), kKeyBlock); }
  int64_t head_items() const { return shape_.H16 / 16; }
  int64_t output_items() const { return ceil_div(shape_.d16, kColumnBlock) * head_items(); }

  void gather(int64_t item) const {
    const int64_t end = std::min(rows_.size(), (item + 1) * kKeyBlock);
    for (int64_t j = item * kKeyBlock; j < end; ++j) {
      float* to = s_.keys + j * shape_.key_stride;
      rows_.load(k_, j, to);
      std::fill(to + shape_.d, to + shape_.d16, 0.0f);
    }
  }
  // Queries of 16 heads, heads across.
  void transpose(int64_t item) const {
    for (int64_t h = item * 16; h < (item + 1) * 16; ++h) {
      float* to = s_.q + h;
      if (h >= shape_.H) {
        for (int64_t i = 0; i < shape_.d; ++i) to[i * shape_.H16] = 0.0f;
        s_.sink[h] = 0.0f;
        continue;
      }
      const bf16* from = a_.q + (rows_.t * shape_.H + h) * shape_.d;
      for (int64_t i = 0; i < shape_.d; ++i) to[i * shape_.H16] = to_float(from[i]);
      s_.sink[h] = a_.sink[h];
    }
  }
  void score(int64_t item) const {
    const int64_t j = item * kKeyBlock, n = std::min(kKeyBlock, rows_.size() - j);
    k_.scores(s_.q, shape_.H16, s_.keys + j * shape_.key_stride, shape_.key_stride, n, shape_.d,
              s_.s + j * shape_.H16);
  }
  void softmax(int64_t item) const {
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape_.d)));
    const int64_t head = item * 16;
    const Softmax16 to{.top = s_.softmax.top + head, .sum = s_.softmax.sum + head, .denominator = s_.softmax.denominator + head};
    k_.softmax16(s_.s + head, shape_.H16, rows_.size(), scale, s_.sink + head, to);
    if (!parts_) return;
    for (int64_t h = 0; h < std::min<int64_t>(16, shape_.H - head); ++h) {
      const int64_t at = rows_.t * shape_.H + head + h;
      parts_->top[at] = to.top[h];
      parts_->lse[at] = to.top[h] + std::log(to.sum[h]);
    }
  }
  // 16 heads x 64 columns of the output; `o` is the worker's.
  void output(int64_t item, float* o) const {
    const int64_t heads = item % head_items() * 16, column = item / head_items() * kColumnBlock;
    const int64_t columns = std::min(kColumnBlock, shape_.d16 - column);
    const int64_t n = std::min<int64_t>(16, shape_.H - heads), valid = std::min(columns, shape_.d - column);
    k_.weighted_sum(s_.s + heads, shape_.H16, s_.keys + column, shape_.key_stride, rows_.size(), n, columns, o);
    for (int64_t h = 0; h < n; ++h) {
      const int64_t at = (rows_.t * shape_.H + heads + h) * shape_.d + column;
      k_.divide_round(o + h * columns, s_.softmax.denominator[heads + h], valid, a_.o + at);
      if (parts_) std::copy_n(o + h * columns, valid, parts_->sums + at);
    }
  }

 private:
  const AttentionKernels& k_;
  const AttentionArgs& a_;
  const AttentionPartsArgs* parts_;
  Shape shape_;
  KeyRows rows_;
  Scratch s_;
};

template <class F>
void share(int64_t n, const ThreadPool& pool, int worker, const F& f) {
  const IndexRange range = split_range(n, pool.threads(), worker);
  for (int64_t i = range.begin; i < range.end; ++i) f(i);
}

template <class F>
void all(int64_t n, const F& f) {
  for (int64_t i = 0; i < n; ++i) f(i);
}

// `parts`: also those of AttentionPartsArgs.
Status attention_rows(OpContext& ctx, const AttentionArgs& a, const AttentionPartsArgs* parts) {
  const char* const op = parts ? "attention_parts" : "attention";
  DSV4_TRY(check_kv_row(op, a.ring.format, a.d, a.r));
  DSV4_TRY(check_kv_row(op, a.entries.format, a.d, a.r));
  if (a.batch.rows == 0) return {};
  Core& c = core(ctx);
  const int threads = c.pool.threads();
  const Shape shape(a);
  int64_t most = 0;
  for (int64_t t = 0; t < a.batch.rows; ++t) most = std::max(most, KeyRows(a, t).size());
  // Many rows: each worker takes rows of its own. Few: all work on one row at a time.
  const bool together = a.batch.rows < 2 * threads;
  const int64_t copies = together ? 1 : threads;
  const int64_t o_floats = 16 * kColumnBlock;

  Workspace::Scope scope(ctx.workspace);
  DSV4_ASSIGN(float* keys, scope.take<float>(copies * most * shape.key_stride));
  DSV4_ASSIGN(float* q, scope.take<float>(copies * shape.d * shape.H16));
  DSV4_ASSIGN(float* s, scope.take<float>(copies * most * shape.H16));
  DSV4_ASSIGN(float* heads, scope.take<float>(copies * 4 * shape.H16));
  DSV4_ASSIGN(float* o, scope.take<float>(threads * o_floats));
  auto scratch = [&](int64_t copy) {
    float* const of_heads = heads + copy * 4 * shape.H16;
    return Scratch{.keys = keys + copy * most * shape.key_stride,
                   .q = q + copy * shape.d * shape.H16,
                   .s = s + copy * most * shape.H16,
                   .sink = of_heads,
                   .softmax = {.top = of_heads + shape.H16, .sum = of_heads + 2 * shape.H16, .denominator = of_heads + 3 * shape.H16}};
  };

  if (together) {
    for (int64_t t = 0; t < a.batch.rows; ++t) {
      const RowAttention row(c.kernels.attention, a, parts, t, scratch(0));
      c.pool.run([&](int worker) {
        share(row.gather_items(), c.pool, worker, [&](int64_t i) { row.gather(i); });
        share(row.head_items(), c.pool, worker, [&](int64_t i) { row.transpose(i); });
      });
      c.pool.run([&](int worker) { share(row.gather_items(), c.pool, worker, [&](int64_t i) { row.score(i); }); });
      c.pool.run([&](int worker) { share(row.head_items(), c.pool, worker, [&](int64_t i) { row.softmax(i); }); });
      c.pool.run([&](int worker) {
        share(row.output_items(), c.pool, worker, [&](int64_t i) { row.output(i, o + worker * o_floats); });
      });
    }
    return {};
  }
  c.pool.run([&](int worker) {
    // Rows in turn: later rows of a prompt attend to more entries.
    for (int64_t t = worker; t < a.batch.rows; t += threads) {
      const RowAttention row(c.kernels.attention, a, parts, t, scratch(worker));
      all(row.gather_items(), [&](int64_t i) { row.gather(i); });
      all(row.head_items(), [&](int64_t i) { row.transpose(i); });
      all(row.gather_items(), [&](int64_t i) { row.score(i); });
      all(row.head_items(), [&](int64_t i) { row.softmax(i); });
      all(row.output_items(), [&](int64_t i) { row.output(i, o + worker * o_floats); });
    }
  });
  return {};
}

}  // namespace

Status rope(OpContext& ctx, const RopeArgs& a) {
  DSV4_TRY(check_rope("rope", a.rope));
  Core& c = core(ctx);
  const int64_t blocks = ceil_div(a.H, kHeadBlock);
  for_items(c.pool, a.T * blocks, a.T * a.H * a.rope.r, [&](int64_t i) {
    float table[kMaxRopeDims];
    const int64_t t = i / blocks, first = i % blocks * kHeadBlock;
    fill_rotation(a.rope, a.positions[t], a.inverse, table);
    for (int64_t h = first; h < std::min(a.H, first + kHeadBlock); ++h) {
      rotate(a.x + (t * a.H + h + 1) * a.d - a.rope.r, a.rope.r, table);
    }
  });
  return {};
}

Status qkv(OpContext& ctx, const QkvArgs& a) {
  DSV4_TRY(check_rope("qkv", a.rope));
  Core& c = core(ctx);
  const int64_t blocks = ceil_div(a.H, kHeadBlock) + 1;  // the last is the key/value row
  const int64_t rounded = a.d - a.rope.r;
  for_items(c.pool, a.T * blocks, a.T * a.H * a.d, [&](int64_t i) {
    float table[kMaxRopeDims];
    const int64_t t = i / blocks, first = i % blocks * kHeadBlock;
    fill_rotation(a.rope, a.positions[t], false, table);
    if (i % blocks == blocks - 1) {
      bf16* kv = a.kv + t * a.d;
      c.kernels.rows.rms_norm(kv, a.kv_norm, a.d, a.eps, kv);
      rotate(kv + rounded, a.rope.r, table);
      for (int64_t at = 0; at < rounded; at += kKv8Group) {
        kv8_round(kv + at, static_cast<int>(std::min<int64_t>(kKv8Group, rounded - at)));
      }
      return;
    }
    for (int64_t h = first; h < std::min(a.H, first + kHeadBlock); ++h) {
      bf16* q = a.q + (t * a.H + h) * a.d;
      c.kernels.rows.head_norm(q, a.d, a.eps);
      rotate(q + rounded, a.rope.r, table);
    }
  });
  return {};
}

Status attention(OpContext& ctx, const AttentionArgs& a) { return attention_rows(ctx, a, nullptr); }
Status attention_parts(OpContext& ctx, const AttentionPartsArgs& a) { return attention_rows(ctx, a.attention, &a); }

}  // namespace dsv4::cpu
