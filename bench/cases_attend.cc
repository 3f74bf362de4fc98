// The whole of an attention block between its projections.
#include "bench/cases.h"

namespace dsv4::bench {
namespace {

constexpr float kEps = 1e-6f;

// One compressor: its inputs, weights, tail and pages.
struct Compressor {
  CompressorSpec spec;
  size_t c, s, ape, norm, tail_c, tail_s, out;
  int64_t tail_rows, per_page;
  bool index_key;
};

Compressor add_compressor(OpCase& c, Rng& rng, const CacheShape& cache, const AttentionShape& s, int64_t dim,
                          bool index_key) {
  // The released models pool overlapping windows where there is an indexer.
  const CompressorSpec spec{.ratio = s.ratio, .overlap = s.topk > 0, .dim = dim};
  const int64_t columns = spec.columns(), tail_rows = spec.window_rows() + kSpareRows;
  const std::string prefix = index_key ? "key_" : "";
  Compressor a{.spec = spec, .tail_rows = tail_rows, .per_page = cache.span / s.ratio, .index_key = index_key};
  a.c = add_normal(c, rng, prefix + "c", DType::kF32, {c.rows, columns}, 1.0f);
  a.s = add_normal(c, rng, prefix + "s", DType::kF32, {c.rows, columns}, 1.0f);
  a.ape = add_normal(c, rng, prefix + "ape", DType::kF32, {s.ratio, columns}, 0.5f);
  a.norm = add_normal(c, rng, prefix + "norm", DType::kBF16, {dim}, 0.2f, Use::kIn, 1.0f);
  const Shape tail{cache.slots, tail_rows, columns};
  a.tail_c = add_normal(c, rng, prefix + "tail_c", DType::kF32, tail, 1.0f, Use::kInOut);
  a.tail_s = add_normal(c, rng, prefix + "tail_s", DType::kF32, tail, 1.0f, Use::kInOut);
  const Shape pages{cache.pages, a.per_page, dim};
  a.out = index_key ? add_keys(c, rng, pages, Use::kInOut)
                    : add_cache_rows(c, rng, "entries", pages, s.r, Use::kInOut);
  c.cost.other_bytes += c.rows * columns * 16;
  c.cost.flops += c.rows * columns * 8;
  return a;
}

PagedView pages_of(const Bound& b, const Compressor& a) {
  return {.data = b.at<char>(a.out),
          .per_page = a.per_page,
          .row_bytes = b.row_bytes(a.out),
          .format = a.index_key ? KvFormat::kBf16 : b.kv_format()};
}

CompressArgs compress_args(const Bound& b, const Compressor& a, const Step& step, RopeView rope) {
  const int64_t columns = a.spec.columns();
  return {.batch = b.batch(step),
          .c = b.at<float>(a.c) + step.first * columns,
          .s = b.at<float>(a.s) + step.first * columns,
          .ape = b.at<float>(a.ape),
          .norm = b.at<bf16>(a.norm),
          .spec = a.spec,
          .index_key = a.index_key,
          .rope = rope,
          .eps = kEps,
          .tail = {.c = b.at<float>(a.tail_c), .s = b.at<float>(a.tail_s), .rows = a.tail_rows, .columns = columns},
          .out = pages_of(b, a)};
}

}  // namespace

OpCase attend_case(const AttentionShape& s, int64_t heads, int64_t e, uint64_t seed) {
  OpCase c{.op = "attend"};
  Rng rng(seed);
  const CacheShape cache = add_batches(c, s.sequences, rng);
  AttentionArrays at{.ring_rows = s.window + kSpareRows, .per_page = s.ratio ? cache.span / s.ratio : 0};
  at.q = add_normal(c, rng, "q", DType::kBF16, {c.rows, s.H, s.d}, 1.7f, Use::kInOut);
  at.kv = add_normal(c, rng, "kv", DType::kBF16, {c.rows, s.d}, 0.6f, Use::kInOut);
  c.arrays[at.kv].rope_dims = s.r;
  const size_t norm = add_normal(c, rng, "kv_norm", DType::kBF16, {s.d}, 0.2f, Use::kIn, 1.0f);
  const size_t freqs = add_freqs(c, s.r);
  at.ring = add_cache_rows(c, rng, "ring", {cache.slots, at.ring_rows, s.d}, s.r, Use::kInOut);
  at.sink = add_normal(c, rng, "sink", DType::kF32, {s.H}, 1.0f);
  at.o = add_array(c, "o", DType::kBF16, {c.rows, s.H, s.d}, Use::kOut);
  c.cost = attention_cost(s, c.batches.front());
  Compressor entries{}, keys{};
  size_t index_q = 0, weights = 0;
  if (s.ratio) {
    entries = add_compressor(c, rng, cache, s, s.d, false);
    at.entries = entries.out;
  }
  if (s.topk) {
    keys = add_compressor(c, rng, cache, s, e, true);
    index_q = add_normal(c, rng, "index_q", DType::kBF16, {c.rows, heads, e}, 1.0f, Use::kInOut);
    weights = add_normal(c, rng, "weights", DType::kBF16, {c.rows, heads}, 1.0f);
    at.selected = add_array(c, "selected", DType::kI32, {c.rows, s.topk}, Use::kOut);
    at.selected_count = add_array(c, "selected_count", DType::kI32, {c.rows}, Use::kOut);
  }
  c.call = [=](OpContext& ctx, const Bound& b, const Step& step) {
    const RopeView rope{.freqs = b.at<float>(freqs), .r = s.r};
    const AttentionArgs attention = attention_args(b, step, s, at);
    bf16* rows_q = b.at<bf16>(at.q) + step.first * s.H * s.d;
    bf16* rows_kv = b.at<bf16>(at.kv) + step.first * s.d;
    AttendArgs a{.qkv = {.q = rows_q,
                         .kv = rows_kv,
                         .kv_norm = b.at<bf16>(norm),
                         .positions = attention.batch.positions,
                         .rope = rope,
                         .T = step.rows,
                         .H = s.H,
                         .d = s.d,
                         .eps = kEps},
                 .entries = {},
                 .keys = {},
                 .select = {},
                 .attention = attention,
                 .ring_insert = {.batch = attention.batch, .kv = rows_kv, .ring = attention.ring, .d = s.d, .r = s.r}};
    if (s.ratio) a.entries = compress_args(b, entries, step, rope);
    if (s.topk) {
      a.keys = compress_args(b, keys, step, rope);
      a.select = {.batch = attention.batch,
                  .q = b.at<bf16>(index_q) + step.first * heads * e,
                  .weights = b.at<bf16>(weights) + step.first * heads,
                  .keys = pages_of(b, keys),
                  .rope = rope,
                  .heads = heads,
                  .e = e,
                  .ratio = s.ratio,
                  .topk = s.topk,
                  .selected = b.at<int32_t>(at.selected) + step.first * s.topk,
                  .selected_count = b.at<int32_t>(at.selected_count) + step.first};
    }
    return ctx.ops.attend(ctx, a);
  };
  return c;
}

}  // namespace dsv4::bench
