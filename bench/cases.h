// Builders: an OpCase from shapes and a seed. One function per op; letters as in ops/args.
#pragma once

#include <vector>

#include "bench/op_case.h"

namespace dsv4::bench {

// NaN and Inf in some rows of the input: they must come out in the same places.
enum class Values : uint8_t { kFinite, kWithNan };

struct HcShape {
  int64_t T = 1, hc = 4, D = 256;
  int32_t iters = 20;
  float hc_eps = 1e-6f;
};
OpCase embed_case(int64_t T, int64_t hc, int64_t D, int64_t V, uint64_t seed);
OpCase hc_pre_case(const HcShape& s, uint64_t seed);
OpCase hc_pre_norm_case(const HcShape& s, uint64_t seed);
OpCase hc_post_case(const HcShape& s, uint64_t seed);
OpCase hc_post_pre_norm_case(const HcShape& s, uint64_t seed);
OpCase hc_head_case(const HcShape& s, int64_t R, uint64_t seed);
OpCase stream_add_case(const HcShape& s, uint64_t seed);

struct LinearShape {
  int64_t T = 1, N = 128, K = 128;
  WeightFormat format = WeightFormat::kFp8Tile128;
  DType y_dtype = DType::kBF16;
};
OpCase rms_norm_case(int64_t T, int64_t N, Values values, uint64_t seed);
OpCase linear_case(const LinearShape& s, Values values, uint64_t seed);
// Parts share T and K.
OpCase linear_stack_case(const std::vector<LinearShape>& parts, bool norm, uint64_t seed);

struct GroupedShape {
  int64_t T = 1, G = 2, R = 64, H = 4, d = 128;  // K = H * d / G
  WeightFormat format = WeightFormat::kFp8Tile128;
};
OpCase grouped_linear_case(const GroupedShape& s, uint64_t seed);

struct HeadShape {
  int64_t T = 1, H = 4, d = 128, r = 64;
};
OpCase rope_case(const HeadShape& s, bool inverse, uint64_t seed);
OpCase qkv_case(const HeadShape& s, uint64_t seed);

// `rows` new rows behind `past` tokens that the cache holds.
struct SequenceShape {
  int64_t past = 0, rows = 1;
};
using Sequences = std::vector<SequenceShape>;

struct CompressShape {
  Sequences sequences;
  int64_t ratio = 4, dim = 128, r = 64;
  bool overlap = true, index_key = false;
};
OpCase compress_case(const CompressShape& s, uint64_t seed);

struct IndexShape {
  Sequences sequences;
  int64_t ratio = 4, heads = 8, e = 64, r = 64, topk = 16;
};
OpCase index_select_case(const IndexShape& s, uint64_t seed);

struct AttentionShape {
  Sequences sequences;
  int64_t H = 4, d = 128, r = 64, window = 32;
  int64_t ratio = 0;       // 0: window only
  int64_t topk = 0;        // 0: all visible entries
  float sharpness = 1.0f;  // spread of the scores
};
OpCase attention_case(const AttentionShape& s, uint64_t seed);
OpCase attention_parts_case(const AttentionShape& s, uint64_t seed);
OpCase ring_insert_case(const AttentionShape& s, uint64_t seed);
// The indexer (layers with a topk) has `heads` heads of e values.
OpCase attend_case(const AttentionShape& s, int64_t heads, int64_t e, uint64_t seed);

struct RouterShape {
  int64_t T = 1, E = 8, D = 256, k = 2;
  bool hash = false;
};
OpCase router_case(const RouterShape& s, uint64_t seed);

enum class Routing : uint8_t {
  kRandom,
  kOneExpert,  // every token to the same experts, all others have none
};
struct MoeShape {
  int64_t T = 1, D = 256, I = 128, E = 8, k = 2;
  WeightFormat format = WeightFormat::kMxfp4;
  Routing routing = Routing::kRandom;
  float limit = 10.0f;
  // Different matrices per stack: 0 = all. Timing needs the bytes, not the variety.
  int64_t distinct = 0;
};
OpCase moe_case(const MoeShape& s, Values values, uint64_t seed);

// Rows of the batch views and where the cache holds what came before: slots and pages in an order
// that is not the sequences'. Adds the whole batch and one per sequence; sets rows, whole, split.
struct CacheShape {
  int64_t slots = 0, pages = 0, span = kSpan;
};
CacheShape add_batches(OpCase& c, const Sequences& sequences, Rng& rng);

// Rows of key/value, cache rows of them, and index keys as the ops leave them.
size_t add_kv_rows(OpCase& c, Rng& rng, std::string name, const Shape& shape, int64_t r, Use use);
size_t add_cache_rows(OpCase& c, Rng& rng, std::string name, const Shape& shape, int64_t r, Use use);
size_t add_keys(OpCase& c, Rng& rng, const Shape& shape, Use use);
Cost attention_cost(const AttentionShape& s, const HostBatch& batch);

// The arrays of an attention, as indices of a case's; `entries` only with a ratio, the last two with topk.
struct AttentionArrays {
  size_t q, kv, ring, sink, o;
  int64_t ring_rows, per_page;  // per_page: entries
  size_t entries = 0, selected = 0, selected_count = 0;
};
AttentionArgs attention_args(const Bound& b, const Step& step, const AttentionShape& s, const AttentionArrays& arrays);

// Spare rows of rings and tails, as a cache with room for a rollback has; odd on purpose.
inline constexpr int64_t kSpareRows = 5;

// [r/2] frequencies of plain RoPE, theta 10000.
size_t add_freqs(OpCase& c, int64_t r);
// Positions that differ from row to row, some large.
size_t add_positions(OpCase& c, int64_t T, Rng& rng);

enum class Logits : uint8_t { kNormal, kEqual, kTies, kMasked, kWide, kUnsound, kNothing };
struct SampleShape {
  int64_t V = 1000;
  Logits logits = Logits::kNormal;
};
OpCase sample_case(const SampleShape& s, const std::vector<SampleRow>& rows, uint64_t seed);

}  // namespace dsv4::bench
