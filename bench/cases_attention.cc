#include <algorithm>
#include <cmath>
#include <numeric>

#include "bench/cases.h"
#include "formats/quantise.h"

namespace dsv4::bench {
namespace {

constexpr float kEps = 1e-6f;

RopeView rope_view(const Bound& b, size_t freqs, int64_t r) {
  return {.freqs = b.at<float>(freqs), .r = r};
}

int64_t last_visible(const SequenceShape& s, int64_t ratio) {
  return ratio ? (s.past + s.rows) / ratio : 0;
}

// Ascending random subsets of the visible entries, [T, topk] and [T].
void pick_entries(const HostBatch& batch, int64_t ratio, int64_t topk, Rng& rng,
                  std::vector<int32_t>& selected, std::vector<int32_t>& count) {
  std::vector<int32_t> all;
  for (const int32_t position : batch.positions) {
    const int64_t visible = (position + 1) / ratio, n = std::min(topk, visible);
    all.resize(static_cast<size_t>(visible));
    std::iota(all.begin(), all.end(), 0);
    for (int64_t i = 0; i < n; ++i) {
      std::swap(all[static_cast<size_t>(i)], all[static_cast<size_t>(i + rng.below(visible - i))]);
    }
    std::sort(all.begin(), all.begin() + n);
    selected.insert(selected.end(), all.begin(), all.begin() + n);
    selected.insert(selected.end(), static_cast<size_t>(topk - n), -1);
    count.push_back(static_cast<int32_t>(n));
  }
}

}  // namespace

size_t add_kv_rows(OpCase& c, Rng& rng, std::string name, const Shape& shape, int64_t r, Use use) {
  const size_t i = add_normal(c, rng, std::move(name), DType::kBF16, shape, 1.0f, use);
  round_kv_rows(c.arrays[i], shape[shape.rank - 1], r);
  return i;
}

size_t add_cache_rows(OpCase& c, Rng& rng, std::string name, const Shape& shape, int64_t r,
                      Use use) {
  const size_t i = add_kv_rows(c, rng, std::move(name), shape, r, use);
  c.arrays[i].kv_rows = true;
  return i;
}

size_t add_keys(OpCase& c, Rng& rng, const Shape& shape, Use use) {
  const size_t i = add_normal(c, rng, "keys", DType::kBF16, shape, 1.0f, use);
  HostArray& a = c.arrays[i];
  for (int64_t at = 0; at < shape.elements(); at += kIdx4Group)
    idx4_round(a.as<bf16>() + at, kIdx4Group);
  return i;
}

Cost attention_cost(const AttentionShape& s, const HostBatch& batch) {
  Cost cost;
  for (const SequenceShape& seq : s.sequences) {
    const int64_t visible = last_visible(seq, s.ratio);
    const int64_t entries = s.topk ? std::min(s.topk * seq.rows, visible) : visible;
    cost.other_bytes += (std::min(seq.past, s.window - 1) + seq.rows + entries) * s.d * 2;
    cost.other_bytes += 4 * seq.rows * s.H * s.d;
  }
  for (const int32_t position : batch.positions) {
    const int64_t visible = s.ratio ? (position + 1) / s.ratio : 0;
    const int64_t n =
        std::min<int64_t>(s.window, position + 1) + (s.topk ? std::min(s.topk, visible) : visible);
    cost.flops += 4 * n * s.H * s.d;
  }
  return cost;
}

size_t add_freqs(OpCase& c, int64_t r) {
  const size_t i = add_array(c, "freqs", DType::kF32, {r / 2}, Use::kIn);
  for (int64_t k = 0; k < r / 2; ++k) {
    c.arrays[i].as<float>()[k] =
        1.0f / std::pow(10000.0f, static_cast<float>(2 * k) / static_cast<float>(r));
  }
  return i;
}

size_t add_positions(OpCase& c, int64_t T, Rng& rng) {
  std::vector<int32_t> p;
  for (int64_t t = 0; t < T; ++t) {
    p.push_back(static_cast<int32_t>(t == 0 ? 0 : rng.below(t % 3 == 2 ? 1000000 : 5000)));
  }
  return add_ints(c, "positions", {T}, p);
}

CacheShape add_batches(OpCase& c, const Sequences& sequences, Rng& rng) {
  const auto S = static_cast<int64_t>(sequences.size());
  CacheShape cache{.slots = S + 1};
  int64_t max_pages = 1;
  std::vector<int64_t> pages_of;
  for (const SequenceShape& s : sequences) {
    const int64_t n = (s.past + s.rows + cache.span - 1) / cache.span;
    pages_of.push_back(n);
    cache.pages += n;
    max_pages = std::max(max_pages, n);
  }
  cache.pages += 2;  // pages of nobody: writes into them show
  std::vector<int32_t> ids(static_cast<size_t>(cache.pages));
  std::iota(ids.begin(), ids.end(), 0);
  for (size_t i = ids.size() - 1; i > 0; --i) {
    std::swap(ids[i], ids[static_cast<size_t>(rng.below(static_cast<int64_t>(i) + 1))]);
  }

  HostBatch all{.max_pages = max_pages};
  all.seq_begin.push_back(0);
  c.batches.emplace_back();
  size_t next_page = 0;
  for (int64_t i = 0; i < S; ++i) {
    const SequenceShape& s = sequences[static_cast<size_t>(i)];
    HostBatch one{.max_pages = max_pages};
    one.seq_slot = {static_cast<int32_t>(S - i)};
    one.seq_pages.assign(static_cast<size_t>(max_pages), 0);
    for (int64_t p = 0; p < pages_of[static_cast<size_t>(i)]; ++p)
      one.seq_pages[static_cast<size_t>(p)] = ids[next_page++];
    one.seq_begin = {0, static_cast<int32_t>(s.rows)};
    for (int64_t t = 0; t < s.rows; ++t) {
      one.tokens.push_back(static_cast<int32_t>(rng.below(1000)));
      one.positions.push_back(static_cast<int32_t>(s.past + t));
      one.row_seq.push_back(0);
      all.row_seq.push_back(static_cast<int32_t>(i));
    }
    c.split.push_back({.first = all.rows(), .rows = s.rows, .batch = c.batches.size()});
    const auto append = [](std::vector<int32_t>& to, const std::vector<int32_t>& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    append(all.tokens, one.tokens);
    append(all.positions, one.positions);
    append(all.seq_slot, one.seq_slot);
    append(all.seq_pages, one.seq_pages);
    all.seq_begin.push_back(static_cast<int32_t>(all.rows()));
    c.batches.push_back(std::move(one));
  }
  c.rows = all.rows();
  c.whole = {.first = 0, .rows = c.rows, .batch = 0};
  c.batches.front() = std::move(all);
  return cache;
}

OpCase rope_case(const HeadShape& s, bool inverse, uint64_t seed) {
  OpCase c{.op = "rope", .rows = s.T};
  Rng rng(seed);
  const size_t x = add_normal(c, rng, "x", DType::kBF16, {s.T, s.H, s.d}, 1.0f, Use::kInOut);
  const size_t positions = add_positions(c, s.T, rng), freqs = add_freqs(c, s.r);
  c.cost = {.other_bytes = s.T * s.H * s.r * 4, .flops = s.T * s.H * s.r * 3};
  split_rows(c);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.rope(ctx, {.x = b.at<bf16>(x) + step.first * s.H * s.d,
                              .positions = b.at<int32_t>(positions) + step.first,
                              .rope = rope_view(b, freqs, s.r),
                              .T = step.rows,
                              .H = s.H,
                              .d = s.d,
                              .inverse = inverse});
  };
  return c;
}

OpCase qkv_case(const HeadShape& s, uint64_t seed) {
  OpCase c{.op = "qkv", .rows = s.T};
  Rng rng(seed);
  const size_t q = add_normal(c, rng, "q", DType::kBF16, {s.T, s.H, s.d}, 1.7f, Use::kInOut);
  const size_t kv = add_normal(c, rng, "kv", DType::kBF16, {s.T, s.d}, 0.6f, Use::kInOut);
  c.arrays[kv].rope_dims = s.r;
  const size_t norm = add_normal(c, rng, "kv_norm", DType::kBF16, {s.d}, 0.2f, Use::kIn, 1.0f);
  const size_t positions = add_positions(c, s.T, rng), freqs = add_freqs(c, s.r);
  c.cost = {.other_bytes = s.T * (s.H + 1) * s.d * 4, .flops = s.T * (s.H + 1) * s.d * 6};
  split_rows(c);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.qkv(ctx, {.q = b.at<bf16>(q) + step.first * s.H * s.d,
                             .kv = b.at<bf16>(kv) + step.first * s.d,
                             .kv_norm = b.at<bf16>(norm),
                             .positions = b.at<int32_t>(positions) + step.first,
                             .rope = rope_view(b, freqs, s.r),
                             .T = step.rows,
                             .H = s.H,
                             .d = s.d,
                             .eps = kEps});
  };
  return c;
}

OpCase compress_case(const CompressShape& s, uint64_t seed) {
  OpCase c{.op = "compress"};
  Rng rng(seed);
  const CacheShape cache = add_batches(c, s.sequences, rng);
  const CompressorSpec spec{.ratio = s.ratio, .overlap = s.overlap, .dim = s.dim};
  const int64_t columns = spec.columns(), tail_rows = spec.window_rows() + kSpareRows;
  const size_t cc = add_normal(c, rng, "c", DType::kF32, {c.rows, columns}, 1.0f);
  const size_t ss = add_normal(c, rng, "s", DType::kF32, {c.rows, columns}, 1.0f);
  const size_t ape = add_normal(c, rng, "ape", DType::kF32, {s.ratio, columns}, 0.5f);
  const size_t norm = add_normal(c, rng, "norm", DType::kBF16, {s.dim}, 0.2f, Use::kIn, 1.0f);
  const size_t freqs = add_freqs(c, s.r);
  const Shape tail{cache.slots, tail_rows, columns};
  const size_t tail_c = add_normal(c, rng, "tail_c", DType::kF32, tail, 1.0f, Use::kInOut);
  const size_t tail_s = add_normal(c, rng, "tail_s", DType::kF32, tail, 1.0f, Use::kInOut);
  const int64_t per_page = cache.span / s.ratio;
  const Shape pages{cache.pages, per_page, s.dim};
  const size_t out = s.index_key ? add_keys(c, rng, pages, Use::kInOut)
                                 : add_cache_rows(c, rng, "entries", pages, s.r, Use::kInOut);
  c.cost = {.other_bytes = c.rows * columns * 16, .flops = c.rows * columns * 8};
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.compress(ctx,
                            {.batch = b.batch(step),
                             .c = b.at<float>(cc) + step.first * columns,
                             .s = b.at<float>(ss) + step.first * columns,
                             .ape = b.at<float>(ape),
                             .norm = b.at<bf16>(norm),
                             .spec = spec,
                             .index_key = s.index_key,
                             .rope = rope_view(b, freqs, s.r),
                             .eps = kEps,
                             .tail = {.c = b.at<float>(tail_c),
                                      .s = b.at<float>(tail_s),
                                      .rows = tail_rows,
                                      .columns = columns},
                             .out = {.data = b.at<char>(out),
                                     .per_page = per_page,
                                     .row_bytes = b.row_bytes(out),
                                     .format = s.index_key ? KvFormat::kBf16 : b.kv_format()}});
  };
  return c;
}

OpCase index_select_case(const IndexShape& s, uint64_t seed) {
  OpCase c{.op = "index_select"};
  Rng rng(seed);
  const CacheShape cache = add_batches(c, s.sequences, rng);
  const size_t q = add_normal(c, rng, "q", DType::kBF16, {c.rows, s.heads, s.e}, 1.0f, Use::kInOut);
  const size_t weights = add_normal(c, rng, "weights", DType::kBF16, {c.rows, s.heads}, 1.0f);
  const int64_t per_page = cache.span / s.ratio;
  const size_t keys = add_keys(c, rng, {cache.pages, per_page, s.e}, Use::kIn);
  const size_t freqs = add_freqs(c, s.r);
  const size_t selected = add_array(c, "selected", DType::kI32, {c.rows, s.topk}, Use::kOut);
  const size_t count = add_array(c, "selected_count", DType::kI32, {c.rows}, Use::kOut);
  for (const SequenceShape& seq : s.sequences) {
    c.cost.other_bytes += last_visible(seq, s.ratio) * s.e * 2 + seq.rows * s.heads * s.e * 4;
  }
  for (const int32_t p : c.batches.front().positions)
    c.cost.flops += (p + 1) / s.ratio * s.heads * (2 * s.e + 2);
  c.sum_length = s.heads * s.e;
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.index_select(
        ctx, {.batch = b.batch(step),
              .q = b.at<bf16>(q) + step.first * s.heads * s.e,
              .weights = b.at<bf16>(weights) + step.first * s.heads,
              .keys = {.data = b.at<char>(keys), .per_page = per_page, .row_bytes = 2 * s.e},
              .rope = rope_view(b, freqs, s.r),
              .heads = s.heads,
              .e = s.e,
              .ratio = s.ratio,
              .topk = s.topk,
              .selected = b.at<int32_t>(selected) + step.first * s.topk,
              .selected_count = b.at<int32_t>(count) + step.first});
  };
  return c;
}

AttentionArgs attention_args(const Bound& b, const Step& step, const AttentionShape& s, const AttentionArrays& arrays) {
  AttentionArgs a{.batch = b.batch(step),
                  .q = b.at<bf16>(arrays.q) + step.first * s.H * s.d,
                  .kv = b.at<bf16>(arrays.kv) + step.first * s.d,
                  .ring = {.data = b.at<char>(arrays.ring),
                           .rows = arrays.ring_rows,
                           .row_bytes = b.row_bytes(arrays.ring),
                           .format = b.kv_format()},
                  .entries = {},
                  .ratio = s.ratio,
                  .selected = nullptr,
                  .selected_count = nullptr,
                  .topk = s.topk,
                  .sink = b.at<float>(arrays.sink),
                  .o = b.at<bf16>(arrays.o) + step.first * s.H * s.d,
                  .H = s.H,
                  .d = s.d,
                  .window = s.window,
                  .r = s.r};
  if (s.ratio) {
    a.entries = {.data = b.at<char>(arrays.entries),
                 .per_page = arrays.per_page,
                 .row_bytes = b.row_bytes(arrays.entries),
                 .format = b.kv_format()};
  }
  if (s.topk) {
    a.selected = b.at<int32_t>(arrays.selected) + step.first * s.topk;
    a.selected_count = b.at<int32_t>(arrays.selected_count) + step.first;
  }
  return a;
}

// Adds all that attention reads, and o.
AttentionArrays add_attention(OpCase& c, const AttentionShape& s, Rng& rng) {
  const CacheShape cache = add_batches(c, s.sequences, rng);
  AttentionArrays at{.ring_rows = s.window + kSpareRows, .per_page = s.ratio ? cache.span / s.ratio : 0};
  at.q = add_normal(c, rng, "q", DType::kBF16, {c.rows, s.H, s.d}, s.sharpness);
  at.kv = add_kv_rows(c, rng, "kv", {c.rows, s.d}, s.r, Use::kIn);
  at.ring = add_cache_rows(c, rng, "ring", {cache.slots, at.ring_rows, s.d}, s.r, Use::kIn);
  at.sink = add_normal(c, rng, "sink", DType::kF32, {s.H}, 1.0f);
  at.o = add_array(c, "o", DType::kBF16, {c.rows, s.H, s.d}, Use::kOut);
  if (s.ratio) at.entries = add_cache_rows(c, rng, "entries", {cache.pages, at.per_page, s.d}, s.r, Use::kIn);
  if (s.topk) {
    std::vector<int32_t> ids, counts;
    pick_entries(c.batches.front(), s.ratio, s.topk, rng, ids, counts);
    at.selected = add_ints(c, "selected", {c.rows, s.topk}, ids);
    at.selected_count = add_ints(c, "selected_count", {c.rows}, counts);
  }
  c.cost = attention_cost(s, c.batches.front());
  return at;
}

OpCase attention_case(const AttentionShape& s, uint64_t seed) {
  OpCase c{.op = "attention"};
  Rng rng(seed);
  const AttentionArrays at = add_attention(c, s, rng);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.attention(ctx, attention_args(b, step, s, at));
  };
  return c;
}

OpCase attention_parts_case(const AttentionShape& s, uint64_t seed) {
  OpCase c{.op = "attention_parts"};
  Rng rng(seed);
  const AttentionArrays at = add_attention(c, s, rng);
  const size_t sums = add_array(c, "sums", DType::kF32, {c.rows, s.H, s.d}, Use::kOut);
  const size_t top = add_array(c, "top", DType::kF32, {c.rows, s.H}, Use::kOut), lse = add_array(c, "lse", DType::kF32, {c.rows, s.H}, Use::kOut);
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    const int64_t first = step.first * s.H;
    return ctx.ops.attention_parts(ctx, {.attention = attention_args(b, step, s, at),
                                         .sums = b.at<float>(sums) + first * s.d,
                                         .top = b.at<float>(top) + first,
                                         .lse = b.at<float>(lse) + first});
  };
  return c;
}

OpCase ring_insert_case(const AttentionShape& s, uint64_t seed) {
  OpCase c{.op = "ring_insert"};
  Rng rng(seed);
  const CacheShape cache = add_batches(c, s.sequences, rng);
  const int64_t ring_rows = s.window + kSpareRows;
  const size_t kv = add_kv_rows(c, rng, "kv", {c.rows, s.d}, s.r, Use::kIn);
  const size_t ring =
      add_cache_rows(c, rng, "ring", {cache.slots, ring_rows, s.d}, s.r, Use::kInOut);
  c.cost = {.other_bytes = c.rows * s.d * 4};
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    return ctx.ops.ring_insert(ctx, {.batch = b.batch(step),
                                     .kv = b.at<bf16>(kv) + step.first * s.d,
                                     .ring = {.data = b.at<char>(ring),
                                              .rows = ring_rows,
                                              .row_bytes = b.row_bytes(ring),
                                              .format = b.kv_format()},
                                     .d = s.d,
                                     .r = s.r});
  };
  return c;
}

}  // namespace dsv4::bench
