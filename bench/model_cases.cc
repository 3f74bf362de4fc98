// The shapes of a released model, for timing.
#include <algorithm>

#include "base/str.h"
#include "bench/cases.h"
#include "bench/op_cases.h"

namespace dsv4::bench {
namespace {

constexpr int64_t kMostDecodeRows = 8;  // more rows than this are a chunk of one prompt
constexpr int64_t kMostDecodeBatch = 256;  // of cases that decode all the same

}  // namespace

std::vector<CaseSpec> model_cases(const ModelConfig& config, int64_t rows,
                                  const TimingOptions& options) {
  std::vector<CaseSpec> specs;
  const ModelConfig& m = config;
  const int64_t T = rows, D = m.hidden_size, H = m.num_attention_heads, d = m.head_dim,
                r = m.qk_rope_head_dim;
  const int64_t lora = m.q_lora_rank, e = m.index_head_dim, G = m.o_groups;
  const auto add = [&](std::string op, std::string name, auto make) {
    specs.push_back({op, name, [=] {
                       OpCase c = make(uint64_t{42});
                       c.name = name;
                       return c;
                     }});
  };
  const WeightFormat fp8 = WeightFormat::kFp8Tile128, bf = WeightFormat::kBf16;

  const HcShape hc{.T = T,
                   .hc = m.hc_mult,
                   .D = D,
                   .iters = static_cast<int32_t>(m.hc_sinkhorn_iters),
                   .hc_eps = static_cast<float>(m.hc_eps)};
  add("embed", "embed", [=](uint64_t s) { return embed_case(T, hc.hc, D, 4096, s); });
  add("hc_pre", "mHC pre", [=](uint64_t s) { return hc_pre_case(hc, s); });
  add("hc_pre_norm", "mHC pre + norm", [=](uint64_t s) { return hc_pre_norm_case(hc, s); });
  add("hc_post_pre_norm", "mHC post, pre + norm", [=](uint64_t s) { return hc_post_pre_norm_case(hc, s); });
  add("hc_post", "mHC post", [=](uint64_t s) { return hc_post_case(hc, s); });
  add("hc_head", "head mix",
      [=](uint64_t s) { return hc_head_case(hc, std::min<int64_t>(T, kMostDecodeRows), s); });
  add("stream_add", "MTP input", [=](uint64_t s) { return stream_add_case(hc, s); });
  add("rms_norm", "q norm", [=](uint64_t s) { return rms_norm_case(T, lora, Values::kFinite, s); });

  const SampleRow largest{.kind = SampleKind::kLargest}, any{.seed = 1, .kind = SampleKind::kDraw};
  SampleRow cut = any;
  cut.top_k = 50;
  cut.top_p = 0.95f;
  const auto sample = [&](const char* name, const SampleRow& row) {
    const std::vector<SampleRow> how(static_cast<size_t>(std::min(T, kMostDecodeBatch)), row);
    const SampleShape s{.V = m.vocab_size};
    add("sample", name, [=](uint64_t seed) { return sample_case(s, how, seed); });
  };
  sample("greedy", largest);
  sample("temperature", any);
  sample("top-k 50, top-p 0.95", cut);

  const auto linear = [&](const char* name, int64_t N, int64_t K, WeightFormat format,
                          DType y = DType::kBF16) {
    const LinearShape l{.T = T, .N = N, .K = K, .format = format, .y_dtype = y};
    add("linear", cat(name, " [", N, ", ", K, "] ", format_info(format).name),
        [=](uint64_t s) { return linear_case(l, Values::kFinite, s); });
  };
  linear("wq_a", lora, D, fp8);
  linear("wq_b", H * d, lora, fp8);
  linear("wo_b", D, G * m.o_lora_rank, fp8);
  linear("compressor", 2 * d, D, bf, DType::kF32);
  linear("expert w1", m.moe_intermediate_size, D, WeightFormat::kMxfp4);
  linear("expert w2", D, m.moe_intermediate_size, WeightFormat::kMxfp4);
  linear("expert w1", m.moe_intermediate_size, D, WeightFormat::kNvfp4);
  linear("head / 8", m.vocab_size / 8, D, bf, DType::kF32);

  const auto part = [=](int64_t N, WeightFormat format, DType y) {
    return LinearShape{.T = T, .N = N, .K = D, .format = format, .y_dtype = y};
  };
  const DType out = DType::kBF16, f32 = DType::kF32;
  const std::vector<LinearShape> swa = {part(lora, fp8, out), part(d, fp8, out)};
  std::vector<LinearShape> hca = swa, csa = swa;
  for (int i = 0; i < 2; ++i) hca.push_back(part(d, bf, f32));
  for (int i = 0; i < 2; ++i) csa.push_back(part(2 * d, bf, f32));
  for (int i = 0; i < 2; ++i) csa.push_back(part(2 * e, bf, f32));
  csa.push_back(part(m.index_n_heads, bf, out));
  add("linear_stack", "projections SWA", [=](uint64_t s) { return linear_stack_case(swa, false, s); });
  add("linear_stack", "projections CSA", [=](uint64_t s) { return linear_stack_case(csa, false, s); });
  add("linear_stack", "projections HCA", [=](uint64_t s) { return linear_stack_case(hca, false, s); });

  const auto query = [=](int64_t N) { return LinearShape{.T = T, .N = N, .K = lora}; };
  const std::vector<LinearShape> queries = {query(H * d), query(m.index_n_heads * e)};
  add("linear_stack", "q norm, queries CSA", [=](uint64_t s) { return linear_stack_case(queries, true, s); });

  const GroupedShape wo{.T = T, .G = G, .R = m.o_lora_rank, .H = H, .d = d};
  add("grouped_linear", "wo_a", [=](uint64_t s) { return grouped_linear_case(wo, s); });

  const HeadShape heads{.T = T, .H = H, .d = d, .r = r};
  add("rope", "RoPE of q", [=](uint64_t s) { return rope_case(heads, false, s); });
  add("qkv", "q norm, RoPE, kv", [=](uint64_t s) { return qkv_case(heads, s); });

  Sequences seqs;
  if (T <= kMostDecodeRows) {
    for (int64_t i = 0; i < T; ++i) seqs.push_back({options.context, 1});
  } else {
    seqs.push_back({options.context, T});
  }
  const std::string at = cat(" at ", options.context);
  const CompressShape entries{.sequences = seqs, .ratio = 4, .dim = d, .r = r, .overlap = true};
  const CompressShape keys{
      .sequences = seqs, .ratio = 4, .dim = e, .r = r, .overlap = true, .index_key = true};
  const CompressShape pooled{.sequences = seqs, .ratio = 128, .dim = d, .r = r, .overlap = false};
  add("compress", cat("CSA entries", at), [=](uint64_t s) { return compress_case(entries, s); });
  add("compress", cat("CSA keys", at), [=](uint64_t s) { return compress_case(keys, s); });
  add("compress", cat("HCA entries", at), [=](uint64_t s) { return compress_case(pooled, s); });
  const IndexShape index{.sequences = seqs,
                         .ratio = 4,
                         .heads = m.index_n_heads,
                         .e = e,
                         .r = r,
                         .topk = m.index_topk};
  add("index_select", cat("indexer", at), [=](uint64_t s) { return index_select_case(index, s); });
  const bool batch = T > kMostDecodeRows && T <= kMostDecodeBatch;
  const Sequences each(static_cast<size_t>(batch ? T : 0), {options.context, 1});
  if (batch) {
    IndexShape i_batch = index;
    i_batch.sequences = each;
    add("index_select", cat("indexer, ", T, " sequences", at), [=](uint64_t s) { return index_select_case(i_batch, s); });
  }
  const AttentionShape a{.sequences = seqs, .H = H, .d = d, .r = r, .window = m.sliding_window};
  AttentionShape a_csa = a, a_hca = a;
  a_csa.ratio = 4;
  a_csa.topk = m.index_topk;
  a_hca.ratio = 128;
  add("attention", cat("SWA", at), [=](uint64_t s) { return attention_case(a, s); });
  add("attention", cat("CSA", at), [=](uint64_t s) { return attention_case(a_csa, s); });
  add("attention", cat("HCA", at), [=](uint64_t s) { return attention_case(a_hca, s); });
  add("attention_parts", cat("parts of CSA", at), [=](uint64_t s) { return attention_parts_case(a_csa, s); });
  if (batch) {
    AttentionShape a_batch = a_csa;
    a_batch.sequences = each;
    add("attention", cat("CSA, ", T, " sequences", at), [=](uint64_t s) { return attention_case(a_batch, s); });
  }
  const auto attend = [&](const char* kind, const AttentionShape& s) {
    add("attend", cat("attend ", kind, at),
        [=, heads = m.index_n_heads](uint64_t seed) { return attend_case(s, heads, e, seed); });
  };
  attend("SWA", a);
  attend("CSA", a_csa);
  attend("HCA", a_hca);
  add("ring_insert", "ring insert", [=](uint64_t s) { return ring_insert_case(a, s); });

  const RouterShape router{.T = T, .E = m.n_routed_experts, .D = D, .k = m.num_experts_per_tok};
  add("router", "router", [=](uint64_t s) { return router_case(router, s); });
  for (const WeightFormat format : {WeightFormat::kMxfp4, WeightFormat::kNvfp4}) {
    const MoeShape moe{.T = T,
                       .D = D,
                       .I = m.moe_intermediate_size,
                       .E = std::min(options.experts, m.n_routed_experts),
                       .k = m.num_experts_per_tok,
                       .format = format,
                       .limit = static_cast<float>(m.swiglu_limit),
                       .distinct = 1};
    add("moe", cat("experts E=", moe.E, " k=", moe.k, " ", format_info(format).name),
        [=](uint64_t s) { return moe_case(moe, Values::kFinite, s); });
  }
  return specs;
}

}  // namespace dsv4::bench
