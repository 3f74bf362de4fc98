// What ops get to see of a batch, whatever the batches before it were.
#include "engine/batch_builder.h"

#include <gtest/gtest.h>

#include "unit/cache/host_backend.h"

namespace dsv4 {
namespace {

constexpr int64_t kSpan = 16, kContext = 80;  // five pages

class BatchBuilderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    CacheSpec spec;
    spec.span = kSpan;
    spec.layers = {{.window = 6, .head_dim = 8, .rope_dim = 2}};
    auto cache = KvCache::make(
        spec, {.max_sequences = 3, .max_tokens = 3 * kContext, .max_rollback = 0}, backend_);
    ASSERT_TRUE(cache.ok()) << cache.status().message();
    cache_ = std::move(cache).value();
    auto builder = BatchBuilder::make(
        {.max_rows = 100, .max_sequences = 3, .max_logit_rows = 70, .context = kContext}, 50,
        *cache_, backend_);
    ASSERT_TRUE(builder.ok()) << builder.status().message();
    builder_ = std::make_unique<BatchBuilder>(std::move(builder).value());
    stream_ = std::move(backend_.make_stream()).value();
  }

  SequenceCache open() { return std::move(cache_->open()).value(); }

  // Builds, uploads, holds every array to what it is defined as, and commits.
  void run(const std::vector<SequenceRows>& sequences) {
    auto built = builder_->build(sequences);
    ASSERT_TRUE(built.ok()) << built.status().message();
    ASSERT_TRUE(builder_->upload(backend_, *stream_).ok());
    const BatchView& view = built->view;
    ASSERT_EQ(view.sequences, std::ssize(sequences));
    EXPECT_EQ(view.max_pages, 5);
    int64_t row = 0, logits = 0;
    for (int64_t s = 0; s < view.sequences; ++s) {
      const SequenceRows& seq = sequences[static_cast<size_t>(s)];
      EXPECT_EQ(view.seq_begin[s], row);
      EXPECT_EQ(view.seq_slot[s], seq.cache->slot());
      const auto held = seq.cache->pages();
      for (int64_t i = 0; i < view.max_pages; ++i) {
        const int32_t want = i < std::ssize(held) ? held[static_cast<size_t>(i)] : 0;
        EXPECT_EQ(view.seq_pages[s * view.max_pages + i], want) << s << ", page " << i;
      }
      const std::ptrdiff_t n = std::ssize(seq.tokens);
      for (int64_t i = 0; i < n; ++i, ++row) {
        EXPECT_EQ(view.tokens[row], seq.tokens[static_cast<size_t>(i)]);
        EXPECT_EQ(view.positions[row], seq.cache->length() + i);
        EXPECT_EQ(view.row_seq[row], s);
        if (seq.logits == LogitRows::kNone || (seq.logits == LogitRows::kLast && i + 1 < n)) {
          continue;
        }
        EXPECT_EQ(built->logit_rows[logits], row);
        const SampleRow& sample = built->samples[logits++];
        EXPECT_EQ(sample.kind, seq.samples() ? seq.sample.kind : SampleKind::kNone);
        EXPECT_EQ(sample.seed, seq.samples() ? seq.sample.seed : 0);
      }
      ASSERT_TRUE(seq.cache->commit(n).ok());
    }
    EXPECT_EQ(view.rows, row);
    EXPECT_EQ(view.seq_begin[view.sequences], row);
    EXPECT_EQ(built->R, logits);
  }

  testing::HostBackend backend_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<BatchBuilder> builder_;
  std::unique_ptr<Stream> stream_;
  const std::vector<int32_t> text_ = std::vector<int32_t>(100, 7);
  const SampleRow draw_{.seed = 11, .kind = SampleKind::kDraw};
};

TEST_F(BatchBuilderTest, ArraysOfEverySizeAreWhole) {
  SequenceCache a = open(), b = open(), c = open();
  const std::span<const int32_t> text(text_);
  run({{&a, text.first(65), LogitRows::kAll, draw_}, {&b, text.first(30), LogitRows::kLast, draw_}});
  run({{&a, text.first(1)}});
  run({{&c, text.first(17), LogitRows::kNone}, {&b, text.first(2), LogitRows::kLast, draw_}});
  run({{&b, text.first(1), LogitRows::kLast, draw_},
       {&c, text.first(1), LogitRows::kLast, draw_},
       {&a, text.first(1), LogitRows::kLast, draw_}});
}

TEST_F(BatchBuilderTest, PagesFollowTheSequencesThroughPlaces) {
  const std::span<const int32_t> text(text_);
  SequenceCache a = open(), b = open();
  run({{&a, text.first(70)}, {&b, text.first(20)}});
  run({{&b, text.first(1)}, {&a, text.first(1)}});  // changed places
  run({{&b, text.first(30)}, {&a, text.first(1)}});  // a page or two more
  b.clear();
  run({{&a, text.first(1)}});
  run({{&b, text.first(5)}, {&a, text.first(1)}});
  // As many pages as before, of a sequence that began anew in the same slot while another took the old ones.
  b.clear();
  SequenceCache c = open();
  run({{&c, text.first(5)}});
  run({{&b, text.first(5)}});
  const int64_t slot = c.slot();
  c.free();
  run({{&b, text.first(1)}});
  c = open();
  ASSERT_EQ(c.slot(), slot);
  run({{&b, text.first(16)}, {&c, text.first(60)}});
  run({{&c, text.first(1)}, {&b, text.first(1)}});
}

}  // namespace
}  // namespace dsv4
