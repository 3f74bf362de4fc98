#include "cache/kv_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

#include "unit/cache/host_backend.h"

namespace dsv4 {
namespace {

CacheSpec small_spec() {
  CacheSpec spec;
  spec.span = 16;
  LayerCacheSpec swa{.window = 6, .head_dim = 8, .rope_dim = 2};
  LayerCacheSpec csa = swa;
  csa.entries = {.ratio = 4, .overlap = true, .dim = 8};
  csa.keys = {.ratio = 4, .overlap = true, .dim = 4};
  LayerCacheSpec hca = swa;
  hca.entries = {.ratio = 16, .overlap = false, .dim = 8};
  spec.layers = {swa, csa, hca};
  return spec;
}

// What ops would do to the regions, with a stamp (unique per write of a position) instead of
// values.
class FakeOps {
 public:
  FakeOps(const CacheSpec& spec, const KvCache& cache) : spec_(spec), cache_(cache) {}

  // Runs rows first .. first+n-1 of a sequence, stamp of position p in stamps[p].
  void run(const SequenceCache& seq, int64_t first, int64_t n,
           const std::map<int64_t, float>& stamps) {
    for (size_t layer = 0; layer < spec_.layers.size(); ++layer) {
      const LayerCacheSpec& spec = spec_.layers[layer];
      const LayerCacheView& view = cache_.layers()[layer];
      // Each position enters ring and tail in order, as a long chunk leaves its last rows behind.
      for (int64_t p = first; p < first + n; ++p) {
        std::memcpy(ring_row(view, seq, p), &stamps.at(p), sizeof(float));
        if (spec.entries.ratio > 0) *tail_row(view.tail, seq, p) = stamps.at(p);
        if (spec.keys.ratio > 0) *tail_row(view.key_tail, seq, p) = stamps.at(p);
        finish_entry(spec.entries, view.tail, view.entries, seq, p, first, stamps);
        finish_entry(spec.keys, view.key_tail, view.keys, seq, p, first, stamps);
      }
    }
  }

  // Everything a query at `length` or later may read of what was committed.
  void expect_readable(const SequenceCache& seq, int64_t length,
                       const std::map<int64_t, float>& stamps) {
    for (size_t layer = 0; layer < spec_.layers.size(); ++layer) {
      const LayerCacheSpec& spec = spec_.layers[layer];
      const LayerCacheView& view = cache_.layers()[layer];
      for (int64_t p = std::max<int64_t>(0, length - spec.window + 1); p < length; ++p) {
        float got = 0;
        std::memcpy(&got, ring_row(view, seq, p), sizeof got);
        ASSERT_EQ(got, stamps.at(p)) << "ring, layer " << layer << ", position " << p;
      }
      expect_compressor(spec.entries, view.tail, view.entries, seq, length, stamps);
      expect_compressor(spec.keys, view.key_tail, view.keys, seq, length, stamps);
    }
  }

 private:
  static char* ring_row(const LayerCacheView& view, const SequenceCache& seq, int64_t p) {
    return view.ring.data +
           (seq.slot() * view.ring.rows + p % view.ring.rows) * view.ring.row_bytes;
  }
  static float* tail_row(const TailView& t, const SequenceCache& seq, int64_t p) {
    return t.c + (seq.slot() * t.rows + p % t.rows) * t.columns;
  }
  static char* entry_row(const PagedView& v, const SequenceCache& seq, int64_t i) {
    const int64_t page = seq.pages()[static_cast<size_t>(i / v.per_page)];
    return v.data + (page * v.per_page + i % v.per_page) * v.row_bytes;
  }
  static int64_t first_pooled(const CompressorSpec& c, int64_t i) {
    return std::max<int64_t>(0, c.overlap ? (i - 1) * c.ratio : i * c.ratio);
  }
  // An entry is worth the sum of the stamps it pools: rows of the batch from it, older from the
  // tail.
  static void finish_entry(const CompressorSpec& c, const TailView& tail, const PagedView& out,
                           const SequenceCache& seq, int64_t p, int64_t first,
                           const std::map<int64_t, float>& stamps) {
    if (c.ratio == 0 || (p + 1) % c.ratio != 0) return;
    const int64_t i = p / c.ratio;
    float sum = 0;
    for (int64_t row = first_pooled(c, i); row <= p; ++row) {
      sum += row < first ? *tail_row(tail, seq, row) : stamps.at(row);
    }
    std::memcpy(entry_row(out, seq, i), &sum, sizeof sum);
  }
  static void expect_compressor(const CompressorSpec& c, const TailView& tail, const PagedView& out,
                                const SequenceCache& seq, int64_t length,
                                const std::map<int64_t, float>& stamps) {
    if (c.ratio == 0) return;
    for (int64_t i = 0; (i + 1) * c.ratio <= length; ++i) {
      float want = 0, got = 0;
      for (int64_t p = first_pooled(c, i); p < (i + 1) * c.ratio; ++p) want += stamps.at(p);
      std::memcpy(&got, entry_row(out, seq, i), sizeof got);
      ASSERT_EQ(got, want) << "entry " << i << " of ratio " << c.ratio << ", length " << length;
    }
    for (int64_t p = first_pooled(c, length / c.ratio); p < length; ++p) {
      ASSERT_EQ(*tail_row(tail, seq, p), stamps.at(p)) << "tail, position " << p;
    }
  }

  const CacheSpec& spec_;
  const KvCache& cache_;
};

struct Tracked {
  SequenceCache cache;
  std::map<int64_t, float> stamps;  // the naive model: by position, what was written last
  int64_t length = 0;
};

// Random opens, reserves, runs, partial commits, rollbacks and frees against the naive model.
TEST(KvCache, RandomOperationsKeepWhatLaterQueriesRead) {
  testing::HostBackend backend;
  const CacheSpec spec = small_spec();
  for (const int64_t max_rollback : {0, 1, 5}) {
    auto made = KvCache::make(
        spec, {.max_sequences = 3, .max_tokens = 20 * 16, .max_rollback = max_rollback}, backend);
    ASSERT_TRUE(made.ok()) << made.status().message();
    KvCache& cache = **made;
    FakeOps ops(spec, cache);
    std::mt19937 rng(static_cast<unsigned>(7 + max_rollback));
    auto pick = [&](int64_t n) { return static_cast<int64_t>(rng() % static_cast<uint64_t>(n)); };
    std::vector<Tracked> live;
    float stamp = 1;
    int refused = 0, rolled_back = 0;

    for (int step = 0; step < 20000; ++step) {
      if (live.empty() || pick(100) == 0) {
        auto opened = cache.open();
        ASSERT_EQ(opened.ok(), live.size() < 3);
        if (opened.ok()) live.push_back({std::move(opened).value(), {}, 0});
        continue;
      }
      const auto index = static_cast<size_t>(pick(static_cast<int64_t>(live.size())));
      Tracked& t = live[index];
      if (pick(200) == 0) {
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(index));
      } else if (pick(4) == 0) {
        const int64_t n = pick(8);
        const Status status = t.cache.rollback(n);
        if (status.ok()) {
          t.length -= n;
          ++rolled_back;
        } else {
          ++refused;
        }
      } else {
        const int64_t n = pick(10) == 0 ? pick(60) : pick(max_rollback + 1) + 1;
        const auto pages_before = cache.free_pages();
        if (!t.cache.reserve(n).ok()) {
          ASSERT_EQ(cache.free_pages(), pages_before);
          ASSERT_LT(cache.free_pages() + static_cast<int64_t>(t.cache.pages().size()),
                    cache.pages_for(t.length + n));
          live.erase(live.begin() + static_cast<std::ptrdiff_t>(index));
          continue;
        }
        for (int64_t p = t.length; p < t.length + n; ++p) {
          t.stamps[p] = stamp;
          stamp = stamp < 1000 ? stamp + 1 : 1;  // sums of stamps stay exact in FP32
        }
        ops.run(t.cache, t.length, n, t.stamps);
        const int64_t keep = n <= max_rollback ? pick(n + 1) : n;
        if (t.cache.commit(keep).ok()) {
          t.length += keep;
        } else {  // an earlier rollback has used the spare rows up
          ASSERT_LT(keep, n);
          ASSERT_TRUE(t.cache.commit(n).ok());
          t.length += n;
        }
      }
      ASSERT_TRUE(cache.check().ok()) << cache.check().message();
      for (Tracked& each : live) {
        ASSERT_EQ(each.cache.length(), each.length);
        if (HasFatalFailure()) return;
        ops.expect_readable(each.cache, each.length, each.stamps);
        if (HasFatalFailure()) return;
      }
    }
    EXPECT_GT(rolled_back, 100);
    EXPECT_GT(refused, 100);
    live.clear();
    EXPECT_EQ(cache.free_pages(), cache.total_pages());
    EXPECT_EQ(cache.free_slots(), 3);
  }
}

TEST(KvCache, RollbackReachesExactlyTheSpareRows) {
  testing::HostBackend backend;
  auto cache = KvCache::make(small_spec(), {.max_tokens = 64, .max_rollback = 3}, backend);
  ASSERT_TRUE(cache.ok());
  auto seq = (*cache)->open();
  ASSERT_TRUE(seq.ok());
  ASSERT_TRUE(seq->reserve(20).ok());
  ASSERT_TRUE(seq->commit(20).ok());
  EXPECT_EQ(seq->rollback(4).code(), Code::kInvalidArgument);
  ASSERT_TRUE(seq->rollback(2).ok());
  ASSERT_TRUE(seq->rollback(1).ok());
  EXPECT_EQ(seq->length(), 17);
  EXPECT_EQ(seq->rollback(1).code(), Code::kInvalidArgument);
  ASSERT_TRUE(seq->reserve(1).ok());
  ASSERT_TRUE(seq->commit(1).ok());
  ASSERT_TRUE(seq->rollback(1).ok());  // rows up to 19 were written before, 17 is still in reach
  EXPECT_EQ(seq->rollback(18).code(), Code::kInvalidArgument);
  ASSERT_TRUE(seq->rollback(17).ok());  // to the start is always possible
  EXPECT_EQ(seq->length(), 0);
}

TEST(KvCache, ExhaustionIsAnErrorAndLosesNothing) {
  testing::HostBackend backend;
  auto cache = KvCache::make(small_spec(),
                             {.max_sequences = 2, .max_tokens = 48, .max_rollback = 2}, backend);
  ASSERT_TRUE(cache.ok());
  auto a = (*cache)->open();
  auto b = (*cache)->open();
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ((*cache)->open().status().code(), Code::kResourceExhausted);
  ASSERT_TRUE(a->reserve(17).ok());
  ASSERT_TRUE(a->commit(17).ok());
  ASSERT_TRUE(b->reserve(16).ok());
  ASSERT_TRUE(b->commit(16).ok());
  const Status full = b->reserve(1);
  EXPECT_EQ(full.code(), Code::kResourceExhausted);
  EXPECT_NE(full.message().find("1 more pages needed, 0 of 3 free"), std::string::npos)
      << full.message();
  EXPECT_EQ(b->length(), 16);
  EXPECT_EQ(b->pages().size(), 1u);
  EXPECT_TRUE((*cache)->check().ok());
  a->free();
  EXPECT_TRUE(b->reserve(1).ok());
  b->unreserve();
  EXPECT_EQ(b->reserved(), 0);
  b->clear();
  EXPECT_EQ((*cache)->free_pages(), 3);
  EXPECT_TRUE((*cache)->check().ok());
}

TEST(KvCache, AHandleMovesAndFreesOnce) {
  testing::HostBackend backend;
  auto cache = KvCache::make(small_spec(), {.max_sequences = 2, .max_tokens = 64}, backend);
  ASSERT_TRUE(cache.ok());
  SequenceCache kept;
  {
    auto opened = (*cache)->open();
    ASSERT_TRUE(opened.ok());
    ASSERT_TRUE(opened->reserve(1).ok());
    ASSERT_TRUE(opened->commit(1).ok());
    kept = std::move(opened).value();
  }
  EXPECT_EQ((*cache)->free_slots(), 1);
  EXPECT_EQ(kept.length(), 1);
  auto other = (*cache)->open();
  ASSERT_TRUE(other.ok());
  EXPECT_NE(other->slot(), kept.slot());
  kept = std::move(other).value();
  EXPECT_EQ((*cache)->free_slots(), 1);
  EXPECT_EQ(kept.length(), 0);
  kept.free();
  EXPECT_FALSE(kept);
  EXPECT_EQ((*cache)->free_slots(), 2);
  EXPECT_TRUE((*cache)->check().ok());
}

TEST(KvCache, MemoryThatIsNotThereIsReportedWithItsRegion) {
  testing::HostBackend backend(1000);
  auto cache = KvCache::make(small_spec(), {.max_tokens = 1 << 20}, backend);
  ASSERT_FALSE(cache.ok());
  EXPECT_EQ(cache.status().code(), Code::kResourceExhausted);
  EXPECT_NE(cache.status().message().find("of layer"), std::string::npos);
}

}  // namespace
}  // namespace dsv4
