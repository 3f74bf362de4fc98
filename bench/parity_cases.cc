// The parity set. Sizes are the smallest that cross each border, so that the whole set runs in
// seconds against the scalar reference.
#include "base/str.h"
#include "bench/cases.h"
#include "bench/op_cases.h"

namespace dsv4::bench {
namespace {

class Set {
 public:
  // make(seed); each case has a seed of its own, by its place: one put before others gives those new numbers.
  template <class Make>
  void add(std::string op, std::string name, Make make) {
    const uint64_t seed = 1000 + specs.size();
    specs.push_back({op, cat(op, " ", name), [=] {
                       OpCase c = make(seed);
                       c.name = cat(op, " ", name);
                       return c;
                     }});
  }
  std::vector<CaseSpec> specs;
};

constexpr int64_t kRows[] = {1, 2, 3, 7, 8, 9, 17, 33};
constexpr WeightFormat kLinearFormats[] = {WeightFormat::kBf16, WeightFormat::kFp8Tile128,
                                           WeightFormat::kMxfp4, WeightFormat::kNvfp4};

void add_residual(Set& set) {
  for (const int64_t T : {1, 3, 9}) {
    set.add("embed", cat("T=", T, " hc=4 D=384"),
            [=](uint64_t s) { return embed_case(T, 4, 384, 50, s); });
    const HcShape small{.T = T, .D = 256}, odd{.T = T, .D = 640, .iters = 3, .hc_eps = 0.01f};
    for (const HcShape& h : {small, odd}) {
      const std::string name = cat("T=", T, " hc=4 D=", h.D, " iters=", h.iters);
      set.add("hc_pre", name, [=](uint64_t s) { return hc_pre_case(h, s); });
      set.add("hc_pre_norm", name, [=](uint64_t s) { return hc_pre_norm_case(h, s); });
      set.add("hc_post_pre_norm", name, [=](uint64_t s) { return hc_post_pre_norm_case(h, s); });
      set.add("hc_post", name, [=](uint64_t s) { return hc_post_case(h, s); });
      set.add("hc_head", cat(name, " R=2"), [=](uint64_t s) { return hc_head_case(h, 2, s); });
      set.add("stream_add", name, [=](uint64_t s) { return stream_add_case(h, s); });
    }
  }
  for (const HcShape& h : {HcShape{.T = 70}, HcShape{.T = 3, .hc = 2, .D = 772}, HcShape{.T = 2, .D = 4096},
                           HcShape{.T = 1, .D = 7168}, HcShape{.T = 9, .D = 7168}}) {
    set.add("hc_post_pre_norm", cat("T=", h.T, " hc=", h.hc, " D=", h.D),
            [=](uint64_t s) { return hc_post_pre_norm_case(h, s); });
  }
  const HcShape flash{.T = 2, .D = 4096};
  set.add("hc_pre", "T=2 hc=4 D=4096", [=](uint64_t s) { return hc_pre_case(flash, s); });
  set.add("hc_head", "T=2 hc=4 D=4096 R=1", [=](uint64_t s) { return hc_head_case(flash, 1, s); });
}

// Every way to sample, in one batch: each draws with a seed and at a position of its own.
std::vector<SampleRow> sample_rows(int64_t V, bool mixed) {
  std::vector<SampleRow> rows;
  const auto add = [&](float temperature, int64_t top_k, float top_p, float min_p) {
    rows.push_back({.seed = 0x9E3779B97F4A7C15u * (rows.size() + 1),
                    .position = static_cast<int64_t>(rows.size()) * 977,
                    .kind = SampleKind::kDraw,
                    .inverse_temperature = 1.0f / temperature,
                    .top_k = static_cast<int32_t>(top_k),
                    .top_p = top_p,
                    .min_p = min_p});
  };
  for (const float temperature : {0.01f, 0.7f, 1.0f, 2.0f, 50.0f}) {
    add(temperature, 0, 1, 0);
    add(temperature, 50, 1, 0);
    add(temperature, 0, 0.95f, 0);
    if (mixed) continue;
    add(temperature, 2, 1, 0);
    add(temperature, V / 2 + 1, 1, 0);
    add(temperature, V, 1, 0);
    add(temperature, 0, 0.1f, 0);
    add(temperature, 0, 0, 0);
    add(temperature, 0, 0.9999999f, 0);
    add(temperature, 0, 1, 0.05f);
    add(temperature, 50, 0.8f, 0.01f);
    add(temperature, V - 1, 0.3f, 1);
  }
  rows.push_back({.kind = SampleKind::kLargest});
  rows.push_back({.kind = SampleKind::kNone});
  return rows;
}

void add_sample(Set& set) {
  const std::pair<Logits, const char*> kinds[] = {
      {Logits::kNormal, "normal"}, {Logits::kEqual, "equal"},     {Logits::kTies, "ties"},
      {Logits::kMasked, "masked"}, {Logits::kWide, "wide"}, {Logits::kUnsound, "unsound"},
      {Logits::kNothing, "nothing"}};
  for (const auto& [kind, name] : kinds) {
    for (const int64_t V : {2, 33, 1000, 4099, 20001}) {
      const SampleShape s{.V = V, .logits = kind};
      const std::vector<SampleRow> rows = sample_rows(V, V > 4099);
      set.add("sample", cat(name, " V=", V, " R=", rows.size()),
              [=](uint64_t seed) { return sample_case(s, rows, seed); });
    }
  }
}

// More tokens than blocks take in one round, columns that end four past a part.
void add_residual_many(Set& set) {
  for (const HcShape& h : {HcShape{.T = 53, .D = 7172}, HcShape{.T = 30, .hc = 2, .D = 7172}}) {
    set.add("hc_post_pre_norm", cat("T=", h.T, " hc=", h.hc, " D=", h.D),
            [=](uint64_t s) { return hc_post_pre_norm_case(h, s); });
  }
  const HcShape one{.T = 30, .hc = 1, .D = 7172}, head{.T = 40, .D = 7172};
  set.add("hc_pre", "T=30 hc=1 D=7172", [=](uint64_t s) { return hc_pre_case(one, s); });
  set.add("hc_head", "T=40 hc=4 D=7172 R=30", [=](uint64_t s) { return hc_head_case(head, 30, s); });
}

void add_linear(Set& set) {
  for (const int64_t T : {1, 3, 8}) {
    for (const int64_t N : {128, 192, 1024, 4096}) {
      set.add("rms_norm", cat("T=", T, " N=", N),
              [=](uint64_t s) { return rms_norm_case(T, N, Values::kFinite, s); });
    }
  }
  set.add("rms_norm", "T=4 N=256 with NaN",
          [](uint64_t s) { return rms_norm_case(4, 256, Values::kWithNan, s); });

  const auto linear = [&](const LinearShape& l, Values values = Values::kFinite) {
    set.add("linear",
            cat(format_info(l.format).name, " T=", l.T, " N=", l.N, " K=", l.K, " ",
                dtype_name(l.y_dtype), values == Values::kWithNan ? " with NaN" : ""),
            [=](uint64_t s) { return linear_case(l, values, s); });
  };
  for (const WeightFormat format : kLinearFormats) {
    for (const int64_t T : kRows) {
      linear({.T = T, .N = 192, .K = 384, .format = format});
      linear({.T = T, .N = 67, .K = 128, .format = format, .y_dtype = DType::kF32});
    }
    // One row and one column of blocks more than a power of two; long sums; a single row.
    linear({.T = 2, .N = 129, .K = 1152, .format = format});
    linear({.T = 9, .N = 33, .K = 4096, .format = format});
    linear({.T = 65, .N = 130, .K = 256, .format = format});
    linear({.T = 3, .N = 1, .K = 256, .format = format, .y_dtype = DType::kF32});
    linear({.T = 5, .N = 70, .K = 256, .format = format}, Values::kWithNan);
  }

  for (const int64_t T : {1, 8, 17, 70}) {
    const auto part = [&](int64_t N, WeightFormat format, DType y = DType::kBF16) {
      return LinearShape{.T = T, .N = N, .K = 384, .format = format, .y_dtype = y};
    };
    const WeightFormat fp8 = WeightFormat::kFp8Tile128, bf = WeightFormat::kBf16;
    const std::vector<LinearShape> swa = {part(128, fp8), part(192, fp8)};
    const std::vector<LinearShape> csa = {part(256, fp8),
                                          part(192, fp8),
                                          part(384, bf, DType::kF32),
                                          part(384, bf, DType::kF32),
                                          part(128, bf, DType::kF32),
                                          part(128, bf, DType::kF32),
                                          part(8, bf)};
    set.add("linear_stack", cat("2 parts T=", T),
            [=](uint64_t s) { return linear_stack_case(swa, false, s); });
    set.add("linear_stack", cat("7 parts T=", T),
            [=](uint64_t s) { return linear_stack_case(csa, false, s); });
    const std::vector<LinearShape> queries = {part(256, fp8), part(192, fp8)};
    set.add("linear_stack", cat("norm, 2 parts T=", T),
            [=](uint64_t s) { return linear_stack_case(queries, true, s); });
  }

  for (const int64_t T : {1, 3, 9, 33, 65}) {
    // Rows of a group end inside a scale tile; K of 4.5 tiles.
    for (const GroupedShape& g :
         {GroupedShape{.T = T, .G = 2, .R = 64, .H = 4, .d = 128},
          GroupedShape{.T = T, .G = 2, .R = 128, .H = 6, .d = 192},
          GroupedShape{.T = T, .G = 3, .R = 96, .H = 3, .d = 64}}) {
      const std::string name = cat("T=", T, " G=", g.G, " R=", g.R, " K=", g.H * g.d / g.G);
      set.add("grouped_linear", name, [=](uint64_t s) { return grouped_linear_case(g, s); });
    }
  }
}

void add_attention(Set& set) {
  for (const HeadShape& h :
       {HeadShape{.T = 1, .H = 1, .d = 64, .r = 64}, HeadShape{.T = 3, .H = 4, .d = 128},
        HeadShape{.T = 9, .H = 6, .d = 192}, HeadShape{.T = 8, .H = 2, .d = 512},
        HeadShape{.T = 33, .H = 3, .d = 96, .r = 32}}) {
    const std::string name = cat("T=", h.T, " H=", h.H, " d=", h.d, " r=", h.r);
    set.add("rope", name, [=](uint64_t s) { return rope_case(h, false, s); });
    set.add("rope", cat(name, " inverse"), [=](uint64_t s) { return rope_case(h, true, s); });
    set.add("qkv", name, [=](uint64_t s) { return qkv_case(h, s); });
  }

  const Sequences first{{0, 1}}, start{{0, 33}}, decode{{511, 1}, {3, 1}, {129, 1}},
      ragged{{0, 17}, {130, 9}, {255, 1}, {62, 3}}, lengthy{{250, 150}, {1, 7}};
  const std::pair<const char*, Sequences> batches[] = {{"first token", first},
                                                       {"prompt", start},
                                                       {"decode", decode},
                                                       {"ragged", ragged},
                                                       {"long", lengthy}};
  for (const auto& [what, seqs] : batches) {
    for (const CompressShape& c :
         {CompressShape{.sequences = seqs, .ratio = 4, .dim = 128, .overlap = true},
          CompressShape{.sequences = seqs,
          .ratio = 4,
          .dim = 64,
          .r = 64,
          .overlap = true,
          .index_key = true},
          CompressShape{.sequences = seqs,
          .ratio = 4,
          .dim = 128,
          .r = 64,
          .overlap = true,
          .index_key = true},
          CompressShape{.sequences = seqs, .ratio = 128, .dim = 192, .overlap = false},
          CompressShape{.sequences = seqs, .ratio = 4, .dim = 512, .overlap = true}}) {
      set.add("compress", cat(what, " m=", c.ratio, " dim=", c.dim, c.index_key ? " keys" : ""),
              [=](uint64_t s) { return compress_case(c, s); });
    }
    for (const IndexShape& i :
         {IndexShape{.sequences = seqs, .topk = 16}, IndexShape{.sequences = seqs, .topk = 200},
          IndexShape{.sequences = seqs, .heads = 9, .e = 128, .topk = 24}}) {
      set.add("index_select", cat(what, " heads=", i.heads, " e=", i.e, " topk=", i.topk),
              [=](uint64_t s) { return index_select_case(i, s); });
    }
    for (const AttentionShape& a :
         {AttentionShape{.sequences = seqs, .window = 32},
          AttentionShape{.sequences = seqs, .H = 6, .d = 192, .window = 32, .ratio = 128},
          AttentionShape{.sequences = seqs, .window = 128, .ratio = 4, .topk = 16},
          AttentionShape{.sequences = seqs,
          .H = 3,
          .d = 64,
          .window = 128,
          .ratio = 4,
          .topk = 130,
          .sharpness = 4.0f},
          AttentionShape{
              .sequences = seqs, .H = 2, .d = 512, .window = 32, .ratio = 4, .topk = 24}}) {
      set.add("attention",
              cat(what, " H=", a.H, " d=", a.d, " W=", a.window, " m=", a.ratio, " topk=", a.topk),
              [=](uint64_t s) { return attention_case(a, s); });
    }
    // Every visible entry is chosen: near-ties of the indexer are the leaf's matter.
    for (const AttentionShape& a :
         {AttentionShape{.sequences = seqs, .window = 32},
          AttentionShape{.sequences = seqs, .H = 6, .d = 192, .window = 32, .ratio = 128},
          AttentionShape{.sequences = seqs, .H = 2, .d = 512, .window = 128, .ratio = 4, .topk = 130}}) {
      set.add("attend", cat(what, " H=", a.H, " d=", a.d, " W=", a.window, " m=", a.ratio, " topk=", a.topk),
              [=](uint64_t s) { return attend_case(a, 8, 64, s); });
    }
    for (const int64_t window : {32, 128}) {
      const AttentionShape a{.sequences = seqs, .d = 192, .window = window};
      set.add("ring_insert", cat(what, " d=192 W=", window),
              [=](uint64_t s) { return ring_insert_case(a, s); });
    }
  }
}

void add_moe(Set& set) {
  for (const int64_t T : kRows) {
    for (const RouterShape& r : {RouterShape{.T = T, .E = 6, .D = 256, .k = 2},
                                 RouterShape{.T = T, .E = 37, .D = 384, .k = 6}}) {
      set.add("router", cat("T=", T, " E=", r.E, " k=", r.k),
              [=](uint64_t s) { return router_case(r, s); });
    }
    const RouterShape hash{.T = T, .E = 7, .k = 3, .hash = true};
    set.add("router", cat("T=", T, " E=7 k=3 hash"),
            [=](uint64_t s) { return router_case(hash, s); });
  }
  set.add("router", "T=2 E=256 k=6 D=4096",
          [](uint64_t s) { return router_case({.T = 2, .E = 256, .D = 4096, .k = 6}, s); });

  for (const WeightFormat format :
       {WeightFormat::kMxfp4, WeightFormat::kNvfp4, WeightFormat::kFp8Tile128}) {
    const std::string name(format_info(format).name);
    for (const int64_t T : kRows) {
      const MoeShape m{.T = T, .D = 256, .I = 128, .E = 7, .k = 2, .format = format};
      set.add("moe", cat(name, " T=", T, " E=7 k=2"),
              [=](uint64_t s) { return moe_case(m, Values::kFinite, s); });
    }
    const MoeShape wide{
        .T = 5, .D = 384, .I = 256, .E = 9, .k = 6, .format = format, .limit = 0.8f};
    set.add("moe", cat(name, " T=5 D=384 I=256 E=9 k=6 limit=0.8"),
            [=](uint64_t s) { return moe_case(wide, Values::kFinite, s); });
    const MoeShape many{.T = 70, .D = 384, .I = 192, .E = 2, .k = 2, .format = format};
    set.add("moe", cat(name, " T=70 D=384 I=192 E=2 k=2"),
            [=](uint64_t s) { return moe_case(many, Values::kFinite, s); });
    const MoeShape one{.T = 17, .E = 5, .k = 1, .format = format, .routing = Routing::kOneExpert};
    set.add("moe", cat(name, " T=17 all to one expert"),
            [=](uint64_t s) { return moe_case(one, Values::kFinite, s); });
    set.add("moe", cat(name, " T=4 with NaN"), [=](uint64_t s) {
      return moe_case({.T = 4, .E = 6, .k = 2, .format = format}, Values::kWithNan, s);
    });
  }
}

// Groups, whose tokens are not rounded, of a format that a backend may lay out for tokens that are. (Not NVFP4: the weight of
// this op is BF16, which its global scale makes inexact.)
void add_grouped_fp4(Set& set) {
  for (const int64_t T : {1, 40}) {
    const GroupedShape g{.T = T, .G = 2, .R = 128, .H = 6, .d = 192, .format = WeightFormat::kMxfp4};
    set.add("grouped_linear", cat("MXFP4 T=", T), [=](uint64_t s) { return grouped_linear_case(g, s); });
  }
}

// Two jobs of more blocks than a GPU holds, each with its whole K in one share.
void add_wide_stack(Set& set) {
  for (const int64_t T : {1, 5}) {
    const auto part = [&](int64_t N) { return LinearShape{.T = T, .N = N, .K = 256, .format = WeightFormat::kFp8Tile128}; };
    const std::vector<LinearShape> queries = {part(20480), part(17000)};
    set.add("linear_stack", cat("norm, 20480 and 17000 rows T=", T),
            [=](uint64_t s) { return linear_stack_case(queries, true, s); });
  }
}

// One row whose experts are more jobs than a GPU has teams for, and more rows of the output than it has blocks for.
void add_moe_one_row(Set& set) {
  for (const WeightFormat format : {WeightFormat::kMxfp4, WeightFormat::kNvfp4, WeightFormat::kFp8Tile128}) {
    for (const MoeShape& m : {MoeShape{.D = 128, .I = 1280, .E = 15, .k = 14, .format = format},
                              MoeShape{.D = 4352, .I = 128, .E = 3, .k = 2, .format = format}}) {
      set.add("moe", cat(format_info(format).name, " T=1 D=", m.D, " I=", m.I, " k=", m.k),
              [=](uint64_t s) { return moe_case(m, Values::kFinite, s); });
    }
  }
}

// Few tokens whose experts have so long rows that weights on their way go round in shared memory.
void add_moe_long_rows(Set& set) {
  for (const WeightFormat format : {WeightFormat::kMxfp4, WeightFormat::kNvfp4, WeightFormat::kFp8Tile128}) {
    for (const int64_t T : {2, 9}) {
      const MoeShape m{.T = T, .D = 1152, .I = 1152, .E = 3, .k = 2, .format = format};
      set.add("moe", cat(format_info(format).name, " T=", T, " D=1152 I=1152"), [=](uint64_t s) { return moe_case(m, Values::kFinite, s); });
    }
  }
}

// Rows of one chunk of keys and of many, one sequence and several.
void add_attention_parts(Set& set) {
  const std::pair<const char*, Sequences> batches[] = {
      {"first token", {{0, 1}}}, {"decode", {{511, 1}, {3, 1}, {129, 1}}}, {"ragged", {{0, 17}, {130, 9}, {255, 1}, {62, 3}}}};
  for (const auto& [what, seqs] : batches) {
    for (const AttentionShape& a :
         {AttentionShape{.sequences = seqs, .window = 32},
          AttentionShape{.sequences = seqs, .H = 6, .d = 192, .window = 32, .ratio = 128},
          AttentionShape{.sequences = seqs, .H = 3, .d = 64, .window = 128, .ratio = 4, .topk = 130, .sharpness = 4.0f},
          AttentionShape{.sequences = seqs, .H = 2, .d = 256, .window = 128, .ratio = 4},
          AttentionShape{.sequences = seqs, .H = 17, .d = 512, .window = 128, .ratio = 4, .topk = 24}}) {
      set.add("attention_parts", cat(what, " H=", a.H, " d=", a.d, " W=", a.window, " m=", a.ratio, " topk=", a.topk),
              [=](uint64_t s) { return attention_parts_case(a, s); });
    }
  }
}

}  // namespace

std::vector<CaseSpec> parity_cases() {
  Set set;
  add_residual(set);
  add_linear(set);
  add_attention(set);
  add_moe(set);
  add_residual_many(set);
  add_sample(set);
  add_grouped_fp4(set);
  add_wide_stack(set);
  add_moe_one_row(set);
  add_moe_long_rows(set);
  add_attention_parts(set);
  return std::move(set.specs);
}

std::vector<CaseSpec> large_cases() {
  Set set;
  // Grids that fill a GPU with whole tiles, K in several shares.
  for (const WeightFormat format : kLinearFormats) {
    const LinearShape l{.T = 1601, .N = 1030, .K = 512, .format = format};
    set.add("linear", cat(format_info(format).name, " T=1601 N=1030 K=512"),
            [=](uint64_t s) { return linear_case(l, Values::kFinite, s); });
  }
  const GroupedShape g{.T = 1601, .G = 4, .R = 256, .H = 4, .d = 512};
  set.add("grouped_linear", "T=1601 G=4 R=256 K=512",
          [=](uint64_t s) { return grouped_linear_case(g, s); });
  for (const WeightFormat format : {WeightFormat::kMxfp4, WeightFormat::kNvfp4}) {
    const MoeShape m{.T = 200, .D = 4096, .I = 384, .E = 3, .k = 2, .format = format};
    set.add("moe", cat(format_info(format).name, " T=200 D=4096 I=384 E=3 k=2"),
            [=](uint64_t s) { return moe_case(m, Values::kFinite, s); });
  }
  for (const Logits logits : {Logits::kNormal, Logits::kEqual, Logits::kWide}) {
    const SampleShape s{.V = 129280, .logits = logits};
    set.add("sample", cat("V=129280 logits ", static_cast<int>(logits)),
            [=](uint64_t seed) { return sample_case(s, sample_rows(s.V, false), seed); });
  }
  const HcShape streams{.T = 700, .D = 4096};
  set.add("hc_post_pre_norm", "T=700 hc=4 D=4096", [=](uint64_t s) { return hc_post_pre_norm_case(streams, s); });
  // More rows than a kernel takes that shares out the keys of one row: prompts, sequences that decode, contexts shorter
  // and longer than a window.
  const Sequences many{{0, 17}, {130, 9}, {255, 1}, {62, 3}, {511, 1}, {3, 1}, {1299, 1}};
  for (const AttentionShape& a :
       {AttentionShape{.sequences = many, .H = 64, .d = 512, .window = 128},
        AttentionShape{.sequences = many, .H = 64, .d = 512, .window = 128, .ratio = 4, .topk = 130, .sharpness = 0.2f},
        AttentionShape{.sequences = many, .H = 128, .d = 512, .r = 32, .window = 32, .ratio = 128}}) {
    const std::string name = cat("33 rows H=", a.H, " W=", a.window, " m=", a.ratio, " topk=", a.topk);
    set.add("attention", name, [=](uint64_t s) { return attention_case(a, s); });
    set.add("attend", name, [=](uint64_t s) { return attend_case(a, 8, 64, s); });
  }
  // Contexts whose scores one cluster makes for a row alone and the whole GPU for all of them, rows of a prompt that share
  // keys, few rows of many entries; with one head half of the scores are zero.
  const Sequences decode{{40002, 1}, {1299, 1}, {3, 1}, {17000, 2}, {9003, 1}, {5000, 1}, {700, 1}, {2050, 2}},
      prompt{{9001, 18}, {5, 3}}, few{{16000, 3}, {15003, 1}}, one{{40002, 1}};
  for (const auto& [what, seqs] :
       {std::pair{"long decode", decode}, {"long prompt", prompt}, {"few rows", few}, {"one row", one}}) {
    for (const IndexShape& i : {IndexShape{.sequences = seqs, .heads = 64, .e = 128, .topk = 512},
                                IndexShape{.sequences = seqs, .heads = 1, .topk = 2100},
                                IndexShape{.sequences = seqs, .heads = 65, .topk = 200}}) {
      set.add("index_select", cat(what, " heads=", i.heads, " e=", i.e, " topk=", i.topk),
              [=](uint64_t s) { return index_select_case(i, s); });
    }
  }
  // Few rows and more blocks than a GPU holds, of weights whose K is in one share and in several.
  for (const int64_t T : {1, 7}) {
    const auto part = [&](int64_t N) { return LinearShape{.T = T, .N = N, .K = 512, .format = WeightFormat::kFp8Tile128}; };
    const std::vector<LinearShape> queries = {part(32800), part(2100)};
    set.add("linear_stack", cat("norm, 32800 and 2100 rows T=", T),
            [=](uint64_t s) { return linear_stack_case(queries, true, s); });
  }
  for (const AttentionShape& a : {AttentionShape{.sequences = many, .H = 64, .d = 512, .window = 128, .ratio = 4, .topk = 130},
                                  AttentionShape{.sequences = many, .H = 128, .d = 512, .window = 128, .ratio = 128}}) {
    set.add("attention_parts", cat("33 rows H=", a.H, " W=", a.window, " m=", a.ratio, " topk=", a.topk),
            [=](uint64_t s) { return attention_parts_case(a, s); });
  }
  return std::move(set.specs);
}

}  // namespace dsv4::bench
