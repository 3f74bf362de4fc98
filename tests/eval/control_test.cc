// Negative controls: an engine with one part of the architecture missing must show in the figures
// of the shipped model, or the held-out sets could not see such a bug. Each control is a table that
// wraps the backend's; kernels and model know nothing of it.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "eval/demo_model.h"
#include "formats/quantise.h"
#include "ops/context.h"

namespace dsv4::eval {
namespace {

// The cpu backend's memory is the host's, so a control may read and write what the ops do.
struct ControlTable : OpTable {
  explicit ControlTable(const OpTable& table) : OpTable(table), inner(table) {}
  const OpTable& inner;
};
const OpTable& inner(const OpContext& ctx) {
  return static_cast<const ControlTable&>(ctx.ops).inner;
}

// x <- H x for the symmetric orthonormal Hadamard matrix, Sylvester order; n a power of two.
void hadamard(bf16* x, int64_t n) {
  std::vector<float> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) v[static_cast<size_t>(i)] = to_float(x[i]);
  for (int64_t step = 1; step < n; step *= 2) {
    for (int64_t i = 0; i < n; ++i) {
      if (i & step) continue;
      float &a = v[static_cast<size_t>(i)], &b = v[static_cast<size_t>(i + step)];
      const float sum = a + b, difference = a - b;
      a = sum;
      b = difference;
    }
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(n));
  for (int64_t i = 0; i < n; ++i) x[i] = to_bf16(v[static_cast<size_t>(i)] * scale);
}

// Index keys without the transform: pooled as a main entry is, then rounded to FP4 as they are.
// (The FP8 rounding of a main entry on the way is far finer.)
Status keys_without_hadamard(OpContext& ctx, const CompressArgs& given) {
  if (!given.index_key) return inner(ctx).compress(ctx, given);
  CompressArgs args = given;
  args.index_key = false;
  args.out.format = KvFormat::kBf16;
  DSV4_TRY(inner(ctx).compress(ctx, args));
  const BatchView& b = args.batch;
  const int64_t m = args.spec.ratio, dim = args.spec.dim;
  for (int64_t s = 0; s < b.sequences; ++s) {
    const int64_t first = b.positions[b.seq_begin[s]];
    const int64_t end = first + b.seq_begin[s + 1] - b.seq_begin[s];
    for (int64_t entry = first / m; (entry + 1) * m <= end; ++entry) {
      const int64_t page = b.seq_pages[s * b.max_pages + entry / args.out.per_page];
      auto* row = reinterpret_cast<bf16*>(args.out.data +
                                          (page * args.out.per_page + entry % args.out.per_page) *
                                              args.out.row_bytes);
      for (int64_t i = 0; i < dim; i += kIdx4Group) idx4_round(row + i, kIdx4Group);
    }
  }
  return {};
}

// The op transforms queries behind their RoPE. H is its own inverse, so queries that bring one H
// along come out without.
Status queries_without_hadamard(OpContext& ctx, const IndexSelectArgs& a) {
  RopeArgs rope{.x = a.q,
                .positions = a.batch.positions,
                .rope = a.rope,
                .T = a.batch.rows,
                .H = a.heads,
                .d = a.e,
                .inverse = false};
  DSV4_TRY(inner(ctx).rope(ctx, rope));
  for (int64_t i = 0; i < a.batch.rows * a.heads; ++i) hadamard(a.q + i * a.e, a.e);
  rope.inverse = true;
  DSV4_TRY(inner(ctx).rope(ctx, rope));
  return inner(ctx).index_select(ctx, a);
}

Status newest_entries(OpContext& ctx, const IndexSelectArgs& a) {
  DSV4_TRY(inner(ctx).index_select(ctx, a));
  for (int64_t t = 0; t < a.batch.rows; ++t) {
    const int64_t visible = (a.batch.positions[t] + 1) / a.ratio;
    const int64_t count = std::min(visible, a.topk);
    for (int64_t i = 0; i < count; ++i) {
      a.selected[t * a.topk + i] = static_cast<int32_t>(visible - count + i);
    }
  }
  return {};
}

Status without_sink(OpContext& ctx, const AttentionArgs& given) {
  const std::vector<float> none(static_cast<size_t>(given.H), -1e30f);  // exp() of it is 0
  AttentionArgs args = given;
  args.sink = none.data();
  return inner(ctx).attention(ctx, args);
}

Status without_position_bias(OpContext& ctx, const CompressArgs& given) {
  const std::vector<float> none(static_cast<size_t>(given.spec.ratio * given.spec.columns()), 0.0f);
  CompressArgs args = given;
  args.ape = none.data();
  return inner(ctx).compress(ctx, args);
}

class Control : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto loaded = Demo::load();
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    demo = std::make_unique<Demo>(std::move(loaded).value());
  }
  static void TearDownTestSuite() { demo.reset(); }
  void SetUp() override { ASSERT_NE(demo, nullptr); }

  static const OpTable& backend() { return demo->loaded.backend->ops(); }
  static inline std::unique_ptr<Demo> demo;
};

TEST_F(Control, AWrapperThatChangesNothingChangesNoFigure) {
  const ControlTable table(backend());
  EXPECT_EQ(demo->figure("story", "perplexity", 8, table),
            demo->figure("story", "perplexity", 8, backend()));
}

TEST_F(Control, StoriesNeedTheAttentionSink) {
  ControlTable table(backend());
  table.attention = {without_sink, "control"};
  EXPECT_LT(demo->figure("story", "perplexity", 8, backend()), 1.5);
  EXPECT_GT(demo->figure("story", "perplexity", 8, table), 3.0);
}

TEST_F(Control, RecallNeedsTheCompressorsPositionBias) {
  ControlTable table(backend());
  table.compress = {without_position_bias, "control"};
  EXPECT_LE(demo->figure("recall_1k", "accuracy", 5, table), 0.2);
}

TEST_F(Control, RecallNeedsTheIndexersChoice) {
  ControlTable table(backend());
  table.index_select = {newest_entries, "control"};
  EXPECT_LE(demo->figure("recall_1k", "accuracy", 10, table), 0.6);
}

TEST_F(Control, RecallNeedsTheHadamardTransform) {
  ControlTable table(backend());
  table.compress = {keys_without_hadamard, "control"};
  table.index_select = {queries_without_hadamard, "control"};
  EXPECT_LE(demo->figure("recall_4k", "accuracy", 6, table), 0.7);
}

}  // namespace
}  // namespace dsv4::eval
