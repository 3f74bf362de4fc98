// What a cache of given limits occupies, region by region, before anything is allocated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "dsv4/status.h"
#include "ops/cache_spec.h"

namespace dsv4 {

struct CacheLimits {
  int64_t max_sequences = 1;  // state slots: sequences that may exist at one time
  int64_t max_tokens = 0;     // over all sequences, rounded up to whole spans
  int64_t max_rollback = 8;   // rows that may be taken back after they were written
};

// A ring and the tails have one unit per slot, entries and keys one per page.
enum class RegionKind : uint8_t { kRing, kTailC, kTailS, kEntries, kKeyTailC, kKeyTailS, kKeys };
std::string_view region_name(RegionKind kind);
constexpr bool is_paged(RegionKind k) {
  return k == RegionKind::kEntries || k == RegionKind::kKeys;
}

struct RegionPlan {
  int64_t layer = 0;  // index in CacheSpec::layers
  RegionKind kind = RegionKind::kRing;
  int64_t rows = 0;  // per slot or per page
  int64_t row_bytes = 0;
  int64_t units = 0;  // slots or pages
  size_t bytes = 0;   // rows * row_bytes * units, rounded up to 256
};

struct CachePlan {
  std::vector<RegionPlan> regions;
  int64_t slots = 0, pages = 0, span = 0, max_rollback = 0;
  size_t slot_bytes = 0;  // one sequence, whatever its length
  size_t page_bytes = 0;  // one span of tokens
  size_t bytes = 0;       // the sum of all regions

  double bytes_per_token() const {
    return static_cast<double>(page_bytes) / static_cast<double>(span);
  }
};

// kInvalidArgument for limits or a spec that make no sense, kResourceExhausted when the sum does
// not fit 63 bits.
Result<CachePlan> plan_cache(const CacheSpec& spec, KvFormat format, const CacheLimits& limits);

}  // namespace dsv4
