#include "cache/cache_plan.h"

#include <gtest/gtest.h>

#include <limits>

namespace dsv4 {
namespace {

CacheSpec three_kinds() {
  CacheSpec spec;
  LayerCacheSpec swa{.window = 128, .head_dim = 512, .rope_dim = 64};
  LayerCacheSpec csa = swa;
  csa.entries = {.ratio = 4, .overlap = true, .dim = 512};
  csa.keys = {.ratio = 4, .overlap = true, .dim = 128};
  LayerCacheSpec hca = swa;
  hca.entries = {.ratio = 128, .overlap = false, .dim = 512};
  spec.layers = {swa, csa, hca};
  return spec;
}

size_t region_bytes(const CachePlan& plan, int64_t layer, RegionKind kind) {
  for (const RegionPlan& r : plan.regions) {
    if (r.layer == layer && r.kind == kind) return r.bytes;
  }
  return 0;
}

TEST(CachePlan, EveryRegionHasTheSizeOfItsFormula) {
  auto plan = plan_cache(three_kinds(), KvFormat::kBf16,
                         {.max_sequences = 3, .max_tokens = 1000, .max_rollback = 8});
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->pages, 4);
  for (int64_t layer = 0; layer < 3; ++layer) {
    EXPECT_EQ(region_bytes(*plan, layer, RegionKind::kRing), 3u * 136 * 1024);
  }
  EXPECT_EQ(region_bytes(*plan, 1, RegionKind::kTailC), 3u * 16 * 1024 * 4);
  EXPECT_EQ(region_bytes(*plan, 1, RegionKind::kTailS), 3u * 16 * 1024 * 4);
  EXPECT_EQ(region_bytes(*plan, 1, RegionKind::kKeyTailC), 3u * 16 * 256 * 4);
  EXPECT_EQ(region_bytes(*plan, 1, RegionKind::kEntries), 4u * 64 * 1024);
  EXPECT_EQ(region_bytes(*plan, 1, RegionKind::kKeys), 4u * 64 * 256);
  EXPECT_EQ(region_bytes(*plan, 2, RegionKind::kTailC), 3u * 136 * 512 * 4);
  EXPECT_EQ(region_bytes(*plan, 2, RegionKind::kEntries), 4u * 2 * 1024);
  EXPECT_EQ(region_bytes(*plan, 2, RegionKind::kKeys), 0u);

  size_t sum = 0;
  for (const RegionPlan& r : plan->regions) sum += r.bytes;
  EXPECT_EQ(sum, plan->bytes);
  EXPECT_EQ(plan->slot_bytes * 3 + plan->page_bytes * 4, plan->bytes);
  EXPECT_DOUBLE_EQ(plan->bytes_per_token(), (64 * 1024 + 64 * 256 + 2 * 1024) / 256.0);
}

TEST(CachePlan, ThePackedRowFormatIsSmaller) {
  auto plan = plan_cache(three_kinds(), KvFormat::kFp8Rope, {.max_tokens = 256});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->regions[0].row_bytes, 448 + 128 + 8);
}

TEST(CachePlan, LimitsThatMakeNoSenseAreNamed) {
  const CacheSpec spec = three_kinds();
  const KvFormat f = KvFormat::kBf16;
  EXPECT_EQ(plan_cache(spec, f, {.max_sequences = 0, .max_tokens = 1}).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(plan_cache(spec, f, {.max_tokens = 0}).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(plan_cache(spec, f, {.max_tokens = 1, .max_rollback = -1}).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(
      plan_cache(spec, f, {.max_tokens = std::numeric_limits<int64_t>::max()}).status().code(),
      Code::kResourceExhausted);

  CacheSpec odd = spec;
  odd.layers[1].entries.ratio = 5;
  EXPECT_EQ(plan_cache(odd, f, {.max_tokens = 1}).status().code(), Code::kInvalidArgument);
  CacheSpec wide = spec;
  wide.layers[0].head_dim = 1024;
  EXPECT_TRUE(plan_cache(wide, f, {.max_tokens = 1}).ok());
  EXPECT_EQ(plan_cache(wide, KvFormat::kFp8Rope, {.max_tokens = 1}).status().code(), Code::kUnsupported);
  CacheSpec huge = spec;
  huge.layers[0].head_dim = int64_t{1} << 60;
  EXPECT_EQ(plan_cache(huge, f, {.max_tokens = 1}).status().code(), Code::kResourceExhausted);
}

}  // namespace
}  // namespace dsv4
