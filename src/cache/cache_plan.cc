#include "cache/cache_plan.h"

#include <limits>

#include "base/str.h"
#include "ops/backend.h"
#include "ops/check.h"

namespace dsv4 {
namespace {

constexpr int64_t kAlign = 256;

// a * b for a, b >= 0, or false when the product leaves int64.
bool multiply(int64_t a, int64_t b, int64_t& out) {
  return !__builtin_mul_overflow(a, b, &out);
}

class Planner {
 public:
  explicit Planner(CachePlan& plan) : plan_(plan) {}

  Status add(int64_t layer, RegionKind kind, int64_t rows, int64_t row_bytes) {
    RegionPlan r{.layer = layer, .kind = kind, .rows = rows, .row_bytes = row_bytes};
    r.units = is_paged(kind) ? plan_.pages : plan_.slots;
    int64_t unit = 0, total = 0, sum = 0;
    if (!multiply(rows, row_bytes, unit) || !multiply(unit, r.units, total) ||
        total > std::numeric_limits<int64_t>::max() - kAlign ||
        __builtin_add_overflow(static_cast<int64_t>(plan_.bytes), total + kAlign, &sum)) {
      return Status(Code::kResourceExhausted,
                    cat("cache: ", region_name(kind), " of layer ", layer, " with ", r.units, " x ",
                        rows, " rows of ", row_bytes,
                        " bytes exceeds 2^63 bytes; ask for fewer sequences or tokens"));
    }
    r.bytes = static_cast<size_t>((total + kAlign - 1) / kAlign * kAlign);
    plan_.bytes += r.bytes;
    (is_paged(kind) ? plan_.page_bytes : plan_.slot_bytes) += static_cast<size_t>(unit);
    plan_.regions.push_back(r);
    return {};
  }

  Status add_tail(int64_t layer, const CompressorSpec& c, RegionKind kind_c, RegionKind kind_s) {
    const int64_t rows = c.window_rows() + plan_.max_rollback;
    const int64_t row_bytes = c.columns() * static_cast<int64_t>(sizeof(float));
    DSV4_TRY(add(layer, kind_c, rows, row_bytes));
    return add(layer, kind_s, rows, row_bytes);
  }

 private:
  CachePlan& plan_;
};

Status check_compressor(int64_t layer, std::string_view what, const CompressorSpec& c,
                        int64_t span) {
  if (c.ratio == 0) return {};
  if (c.ratio < 0 || c.dim <= 0 || span % c.ratio != 0) {
    return Status(
        Code::kInvalidArgument,
        cat("cache spec: layer ", layer, ": ", what, ": ratio ", c.ratio, " and dim ", c.dim,
            ": expected dim > 0 and a ratio that divides the span of ", span, " tokens"));
  }
  return {};
}

}  // namespace

std::string_view region_name(RegionKind kind) {
  switch (kind) {
    case RegionKind::kRing:
      return "window ring";
    case RegionKind::kTailC:
      return "compressor tail, values";
    case RegionKind::kTailS:
      return "compressor tail, scores";
    case RegionKind::kEntries:
      return "compressed entries";
    case RegionKind::kKeyTailC:
      return "indexer tail, values";
    case RegionKind::kKeyTailS:
      return "indexer tail, scores";
    case RegionKind::kKeys:
      return "indexer keys";
  }
  return "unknown";
}

Result<CachePlan> plan_cache(const CacheSpec& spec, KvFormat format, const CacheLimits& limits) {
  // Slot numbers, page ids and positions are int32 in BatchView.
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  if (limits.max_sequences < 1 || limits.max_sequences > kMax || limits.max_tokens < 1 ||
      limits.max_rollback < 0 || limits.max_rollback > kMax) {
    return Status(Code::kInvalidArgument,
                  cat("cache limits: ", limits.max_sequences, " sequences, ", limits.max_tokens,
                      " tokens, rollback of ", limits.max_rollback,
                      ": expected at least 1 sequence, 1 token and a rollback >= 0"));
  }
  if (spec.span < 1) {
    return Status(Code::kInvalidArgument, cat("cache spec: span ", spec.span, ": expected > 0"));
  }
  const int64_t pages = (limits.max_tokens - 1) / spec.span + 1;
  if (pages > kMax) {
    return Status(Code::kResourceExhausted,
                  cat("cache: ", limits.max_tokens, " tokens need ", pages, " pages of ", spec.span,
                      " tokens, at most ", kMax, " are possible"));
  }

  CachePlan plan;
  plan.slots = limits.max_sequences;
  plan.pages = pages;
  plan.span = spec.span;
  plan.max_rollback = limits.max_rollback;
  Planner planner(plan);
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const LayerCacheSpec& l = spec.layers[i];
    const auto layer = static_cast<int64_t>(i);
    if (l.window < 1 || l.head_dim < 1 || l.rope_dim < 0 || l.rope_dim > l.head_dim) {
      return Status(
          Code::kInvalidArgument,
          cat("cache spec: layer ", layer, ": window ", l.window, ", head_dim ", l.head_dim,
              ", rope_dim ", l.rope_dim, ": expected window > 0 and 0 <= rope <= head_dim"));
    }
    DSV4_TRY(check_kv_row(cat("cache spec: layer ", layer), format, l.head_dim, l.rope_dim));
    DSV4_TRY(check_compressor(layer, "entries", l.entries, spec.span));
    DSV4_TRY(check_compressor(layer, "keys", l.keys, spec.span));

    DSV4_TRY(planner.add(layer, RegionKind::kRing, l.window + plan.max_rollback,
                         kv_row_bytes(format, l.head_dim, l.rope_dim)));
    if (l.entries.ratio > 0) {
      DSV4_TRY(planner.add_tail(layer, l.entries, RegionKind::kTailC, RegionKind::kTailS));
      DSV4_TRY(planner.add(layer, RegionKind::kEntries, spec.span / l.entries.ratio,
                           kv_row_bytes(format, l.entries.dim, l.rope_dim)));
    }
    if (l.keys.ratio > 0) {
      DSV4_TRY(planner.add_tail(layer, l.keys, RegionKind::kKeyTailC, RegionKind::kKeyTailS));
      DSV4_TRY(planner.add(layer, RegionKind::kKeys, spec.span / l.keys.ratio,
                           l.keys.dim * static_cast<int64_t>(dtype_size(DType::kBF16))));
    }
  }
  return plan;
}

}  // namespace dsv4
