// However a sequence is cut into batches, alone or beside others, it sees the same: `attend` with a
// cache, once in one piece, then token by token, in ragged chunks and mixed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "bench/cases.h"
#include "cache/kv_cache.h"
#include "compare.h"
#include "machine.h"

namespace dsv4::parity {
namespace {

constexpr float kEps = 1e-6f;

struct Layer {
  const char* name;
  int64_t window, ratio, topk;  // topk 0: all visible entries
  int64_t H = 2, d = 128, r = 64, heads = 4, e = 64;
};

constexpr Layer kLayers[] = {{.name = "SWA", .window = 32, .ratio = 0, .topk = 0},
                             {.name = "CSA", .window = 32, .ratio = 4, .topk = 12},
                             {.name = "CSA_wide", .window = 128, .ratio = 4, .topk = 100, .d = 192},
                             {.name = "HCA", .window = 32, .ratio = 128, .topk = 0}};

// Everything that enters the block for one sequence of n tokens.
struct Inputs {
  int64_t n = 0;
  std::vector<bf16> q, kv, index_q, index_w;
  std::vector<float> c, s, key_c, key_s;
};

std::vector<bf16> random_bf16(int64_t n, bench::Rng& rng) {
  std::vector<bf16> v(static_cast<size_t>(n));
  for (bf16& x : v) x = to_bf16(rng.normal());
  return v;
}

std::vector<float> random_f32(int64_t n, bench::Rng& rng) {
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = rng.normal();
  return v;
}

Inputs make_inputs(const Layer& l, int64_t n, uint64_t seed) {
  bench::Rng rng(seed);
  Inputs in{.n = n};
  in.q = random_bf16(n * l.H * l.d, rng);
  in.kv = random_bf16(n * l.d, rng);
  in.index_q = random_bf16(n * l.heads * l.e, rng);
  in.index_w = random_bf16(n * l.heads, rng);
  in.c = random_f32(n * 2 * l.d, rng);
  in.s = random_f32(n * 2 * l.d, rng);
  in.key_c = random_f32(n * 2 * l.e, rng);
  in.key_s = random_f32(n * 2 * l.e, rng);
  return in;
}

class Chunks : public testing::TestWithParam<std::tuple<std::string, size_t>> {
 protected:
  using Piece = std::pair<size_t, int64_t>;  // sequence, rows

  void SetUp() override {
    auto machine = Machine::make(std::get<0>(GetParam()));
    ASSERT_TRUE(machine.ok()) << machine.status().message();
    machine_ = std::move(machine).value();
    bench::Rng rng(5);
    ape_ = random_f32(std::max<int64_t>(layer().ratio, 1) * 2 * layer().d, rng);
    norm_ = random_bf16(layer().d, rng);
    sink_ = random_f32(layer().H, rng);
    for (int64_t i = 0; i < layer().r / 2; ++i)
      freqs_.push_back(1.0f / static_cast<float>(1 << (i / 3)));
  }
  const Layer& layer() const { return kLayers[std::get<1>(GetParam())]; }

  template <class T>
  T* put(const std::vector<T>& host) {
    auto buffer = machine_.backend->allocate(std::max<size_t>(1, host.size() * sizeof(T)));
    EXPECT_TRUE(buffer.ok());
    EXPECT_TRUE(machine_.backend
                    ->upload(*machine_.stream, buffer->data(), host.data(), host.size() * sizeof(T))
                    .ok());
    EXPECT_TRUE(machine_.backend->synchronize(*machine_.stream).ok());
    step_.push_back(std::move(*buffer));
    return step_.back().as<T>();
  }

  // Runs the batches in order; returns o of every sequence [n, H, d].
  std::vector<std::vector<bf16>> run(const std::vector<Inputs>& sequences,
                                     const std::vector<std::vector<Piece>>& batches) {
    const Layer& l = layer();
    const CompressorSpec entries{.ratio = l.ratio, .overlap = l.ratio == 4, .dim = l.d};
    const CompressorSpec keys{.ratio = l.topk ? l.ratio : 0, .overlap = true, .dim = l.e};
    const CacheSpec spec{.layers = {{.window = l.window,
                                     .head_dim = l.d,
                                     .rope_dim = l.r,
                                     .entries = entries,
                                     .keys = keys}},
                         .span = 256};
    auto cache = KvCache::make(spec, {.max_sequences = 4, .max_tokens = 4096, .max_rollback = 3},
                               *machine_.backend);
    EXPECT_TRUE(cache.ok()) << cache.status().message();
    std::vector<SequenceCache> open;
    std::vector<std::vector<bf16>> o;
    for (size_t i = 0; i < sequences.size(); ++i)
      open.push_back(std::move((*cache)->open()).value());
    for (const Inputs& in : sequences) o.emplace_back(in.q.size());
    for (const std::vector<Piece>& batch : batches) {
      const Status status = step(l, sequences, batch, **cache, open, o);
      EXPECT_TRUE(status.ok()) << status.message();
    }
    return o;
  }

  Status step(const Layer& l, const std::vector<Inputs>& sequences, const std::vector<Piece>& batch,
              KvCache& cache, std::vector<SequenceCache>& open, std::vector<std::vector<bf16>>& o) {
    bench::HostBatch b{.max_pages = 16};
    Inputs rows;
    b.seq_begin.push_back(0);
    for (const auto& piece : batch) {
      const size_t seq = piece.first;
      const int64_t n = piece.second;  // a lambda may not capture a structured binding
      const int64_t past = open[seq].length();
      DSV4_TRY(open[seq].reserve(n));
      const Inputs& in = sequences[seq];
      const auto take = [&](auto& to, const auto& from) {
        const auto width = static_cast<std::ptrdiff_t>(from.size()) / in.n;
        to.insert(to.end(), from.begin() + past * width, from.begin() + (past + n) * width);
      };
      take(rows.q, in.q);
      take(rows.kv, in.kv);
      take(rows.index_q, in.index_q);
      take(rows.index_w, in.index_w);
      take(rows.c, in.c);
      take(rows.s, in.s);
      take(rows.key_c, in.key_c);
      take(rows.key_s, in.key_s);
      for (int64_t i = 0; i < n; ++i) {
        b.tokens.push_back(0);
        b.positions.push_back(static_cast<int32_t>(past + i));
        b.row_seq.push_back(static_cast<int32_t>(b.seq_slot.size()));
      }
      b.seq_slot.push_back(static_cast<int32_t>(open[seq].slot()));
      b.seq_begin.push_back(static_cast<int32_t>(b.rows()));
      std::vector<int32_t> pages(open[seq].pages().begin(), open[seq].pages().end());
      pages.resize(static_cast<size_t>(b.max_pages), 0);
      b.seq_pages.insert(b.seq_pages.end(), pages.begin(), pages.end());
    }
    const BatchView view{.rows = b.rows(),
                         .sequences = b.sequences(),
                         .tokens = put(b.tokens),
                         .positions = put(b.positions),
                         .row_seq = put(b.row_seq),
                         .seq_begin = put(b.seq_begin),
                         .seq_slot = put(b.seq_slot),
                         .seq_pages = put(b.seq_pages),
                         .max_pages = b.max_pages};
    OpContext ctx{*machine_.backend, machine_.backend->ops(), *machine_.stream,
                  *machine_.workspace};
    const LayerCacheView& at = cache.layers()[0];
    const RopeView rope{.freqs = put(freqs_), .r = l.r};
    bf16 *q = put(rows.q), *kv = put(rows.kv);
    std::vector<bf16> out(rows.q.size());
    bf16* o_rows = put(out);
    AttendArgs a{.qkv = {.q = q,
                         .kv = kv,
                         .kv_norm = put(norm_),
                         .positions = view.positions,
                         .rope = rope,
                         .T = b.rows(),
                         .H = l.H,
                         .d = l.d,
                         .eps = kEps},
                 .entries = {},
                 .keys = {},
                 .select = {},
                 .attention = {.batch = view,
                               .q = q,
                               .kv = kv,
                               .ring = at.ring,
                               .entries = l.ratio ? at.entries : PagedView{},
                               .ratio = l.ratio,
                               .selected = nullptr,
                               .selected_count = nullptr,
                               .topk = l.topk,
                               .sink = put(sink_),
                               .o = o_rows,
                               .H = l.H,
                               .d = l.d,
                               .window = l.window,
                               .r = l.r},
                 .ring_insert = {.batch = view, .kv = kv, .ring = at.ring, .d = l.d, .r = l.r}};
    if (l.ratio) {
      // With one column block the compressor reads the first `columns` values of what lies there.
      const int64_t columns = at.tail.columns;
      a.entries = {.batch = view,
                   .c = put(narrow(rows.c, 2 * l.d, columns)),
                   .s = put(narrow(rows.s, 2 * l.d, columns)),
                   .ape = put(ape_),
                   .norm = put(norm_),
                   .spec = {.ratio = l.ratio, .overlap = l.ratio == 4, .dim = l.d},
                   .index_key = false,
                   .rope = rope,
                   .eps = kEps,
                   .tail = at.tail,
                   .out = at.entries};
    }
    if (l.topk) {
      a.keys = {.batch = view,
                .c = put(rows.key_c),
                .s = put(rows.key_s),
                .ape = put(ape_),
                .norm = put(norm_),
                .spec = {.ratio = l.ratio, .overlap = true, .dim = l.e},
                .index_key = true,
                .rope = rope,
                .eps = kEps,
                .tail = at.key_tail,
                .out = at.keys};
      a.select = {.batch = view,
                  .q = put(rows.index_q),
                  .weights = put(rows.index_w),
                  .keys = at.keys,
                  .rope = rope,
                  .heads = l.heads,
                  .e = l.e,
                  .ratio = l.ratio,
                  .topk = l.topk,
                  .selected = put(std::vector<int32_t>(static_cast<size_t>(b.rows() * l.topk))),
                  .selected_count = put(std::vector<int32_t>(static_cast<size_t>(b.rows())))};
      a.attention.selected = a.select.selected;
      a.attention.selected_count = a.select.selected_count;
    }
    DSV4_TRY(ctx.ops.attend(ctx, a));
    DSV4_TRY(machine_.backend->download(*machine_.stream, out.data(), o_rows,
                                        out.size() * sizeof(bf16)));
    DSV4_TRY(machine_.backend->synchronize(*machine_.stream));
    step_.clear();
    auto from = out.begin();
    for (const auto& [seq, n] : batch) {
      const auto width = static_cast<std::ptrdiff_t>(l.H * l.d);
      std::copy(from, from + n * width, o[seq].begin() + open[seq].length() * width);
      from += n * width;
      DSV4_TRY(open[seq].commit(n));
    }
    return {};
  }

  static std::vector<float> narrow(const std::vector<float>& rows, int64_t width, int64_t columns) {
    std::vector<float> out;
    for (auto row = rows.begin(); row != rows.end(); row += width)
      out.insert(out.end(), row, row + columns);
    return out;
  }

  static std::string first_difference(const std::vector<bf16>& a, const std::vector<bf16>& b,
                                      int64_t width) {
    for (size_t i = 0; i < a.size(); ++i) {
      if (a[i].bits != b[i].bits) return "token " + std::to_string(static_cast<int64_t>(i) / width);
    }
    return "";
  }

  Machine machine_;
  std::vector<Buffer> step_;
  std::vector<float> ape_, sink_, freqs_;
  std::vector<bf16> norm_;
};

TEST_P(Chunks, TheCutDoesNotShow) {
  const std::vector<Inputs> one = {make_inputs(layer(), 300, 11)};
  const auto whole = run(one, {{{0, 300}}});
  const int64_t width = layer().H * layer().d;
  bench::Rng rng(3);
  std::vector<std::vector<Piece>> single, ragged;
  for (int64_t i = 0; i < 300; ++i) single.push_back({{0, 1}});
  for (int64_t done = 0; done < 300;) {
    const int64_t n = std::min<int64_t>(300 - done, 1 + rng.below(done % 3 ? 9 : 70));
    ragged.push_back({{0, n}});
    done += n;
  }
  EXPECT_EQ(first_difference(whole[0], run(one, single)[0], width), "") << "token by token";
  EXPECT_EQ(first_difference(whole[0], run(one, ragged)[0], width), "") << "in ragged chunks";
  EXPECT_EQ(first_difference(whole[0], run(one, {{{0, 129}}, {{0, 1}}, {{0, 170}}})[0], width), "")
      << "129 + 1 + 170";
}

TEST_P(Chunks, OthersInTheBatchDoNotShow) {
  const std::vector<Inputs> both = {make_inputs(layer(), 150, 21), make_inputs(layer(), 140, 22)};
  const int64_t width = layer().H * layer().d;
  const auto alone = run(both, {{{0, 150}}, {{1, 140}}});
  const auto mixed =
      run(both, {{{1, 33}, {0, 1}}, {{0, 64}}, {{0, 70}, {1, 100}}, {{1, 1}, {0, 15}}, {{1, 6}}});
  EXPECT_EQ(first_difference(alone[0], mixed[0], width), "");
  EXPECT_EQ(first_difference(alone[1], mixed[1], width), "");
}

// What prompts leave in the cache is read back as it was, whatever the format of rows there.
TEST_P(Chunks, TheFormatOfCacheRowsDoesNotShow) {
  const std::vector<Inputs> both = {make_inputs(layer(), 150, 31), make_inputs(layer(), 280, 32)};
  const int64_t width = layer().H * layer().d;
  const std::vector<std::vector<Piece>> batches = {{{1, 33}, {0, 1}}, {{0, 64}}, {{1, 129}}, {{0, 70}, {1, 100}},
                                                   {{1, 1}, {0, 1}},  {{1, 1}},  {{0, 14}, {1, 16}}};
  machine_.backend->choose_kv_format(KvFormat::kBf16);
  const auto expected = run(both, batches);
  machine_.backend->choose_kv_format(KvFormat::kFp8Rope);
  const auto found = run(both, batches);
  EXPECT_EQ(first_difference(expected[0], found[0], width), "");
  EXPECT_EQ(first_difference(expected[1], found[1], width), "");
}

INSTANTIATE_TEST_SUITE_P(Backends, Chunks,
                         testing::Combine(testing::ValuesIn(backends_under_test()),
                                          testing::Range(size_t{0}, std::size(kLayers))),
                         [](const auto& param) {
                           return std::get<0>(param.param) + "_" +
                                  kLayers[std::get<1>(param.param)].name;
                         });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Chunks);

}  // namespace
}  // namespace dsv4::parity
