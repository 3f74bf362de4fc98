#include "bench/synthetic.h"

#include <cmath>
#include <cstring>

#include "model/rope.h"

namespace dsv4::bench {
namespace {

constexpr int64_t kDistinctExperts = 4;

class Maker {
 public:
  Maker(const ModelConfig& config, Backend& backend, uint64_t seed, SyntheticModel& out)
      : c_(config), backend_(backend), rng_(seed), out_(out) {}

  Status make(const ProgressSink& progress) {
    const ModelPlan& plan = out_.model.plan;
    Weights& w = out_.model.weights;
    const int64_t V = c_.vocab_size, D = c_.hidden_size;
    const auto total = static_cast<int64_t>(plan.layers.size() + plan.mtp.size());
    int64_t done = 0;
    const auto report = [&] {
      if (progress)
        progress({.stage = "making weights", .done = done, .total = total, .unit = "layers"});
    };
    report();
    DSV4_TRY(matrix(WeightRole::kEmbed, WeightFormat::kBf16, V, D, w.embed));
    DSV4_TRY(matrix(WeightRole::kLinear, WeightFormat::kBf16, V, D, w.lm_head));
    DSV4_TRY(head(w.head));
    for (const LayerPlan& p : plan.layers) {
      DSV4_TRY(layer(p, w.layers.emplace_back()));
      DSV4_TRY(frequencies(p, p.has_compressor() ? w.rope_compressed : w.rope_plain));
      ++done;
      report();
    }
    for (const LayerPlan& p : plan.mtp) {
      MtpWeights& mtp = w.mtp.emplace_back();
      DSV4_TRY(vector(WeightFormat::kBf16, 1, D, 0.1f, 1.0f, mtp.enorm));
      DSV4_TRY(vector(WeightFormat::kBf16, 1, D, 0.1f, 1.0f, mtp.hnorm));
      DSV4_TRY(fp8(D, D, mtp.e_proj));
      DSV4_TRY(fp8(D, D, mtp.h_proj));
      DSV4_TRY(layer(p, mtp.layer));
      DSV4_TRY(head(mtp.head));
      DSV4_TRY(frequencies(p, w.rope_plain));
      ++done;
      report();
    }
    return {};
  }

 private:
  Status layer(const LayerPlan& p, LayerWeights& w) {
    DSV4_TRY(site(w.hc_attn));
    DSV4_TRY(attention(p, w.attn));
    DSV4_TRY(site(w.hc_ffn));
    return ffn(p, w.ffn);
  }

  Status site(HcSiteWeights& w) {
    const int64_t n = c_.hc_mult * c_.hidden_size;
    DSV4_TRY(vector(WeightFormat::kF32, c_.hc_rows(), n, 1.0f / std::sqrt(static_cast<float>(n)),
                    0.0f, w.fn));
    DSV4_TRY(vector(WeightFormat::kF32, 1, c_.hc_rows(), 0.5f, 0.0f, w.base));
    DSV4_TRY(vector(WeightFormat::kF32, 1, 3, 0.1f, 1.0f, w.scale));
    return vector(WeightFormat::kBf16, 1, c_.hidden_size, 0.1f, 1.0f, w.norm);
  }

  Status head(HeadWeights& w) {
    const int64_t n = c_.hc_mult * c_.hidden_size;
    DSV4_TRY(vector(WeightFormat::kF32, c_.hc_mult, n, 1.0f / std::sqrt(static_cast<float>(n)),
                    0.0f, w.fn));
    DSV4_TRY(vector(WeightFormat::kF32, 1, c_.hc_mult, 0.5f, 0.0f, w.base));
    DSV4_TRY(vector(WeightFormat::kF32, 1, 1, 0.1f, 1.0f, w.scale));
    return vector(WeightFormat::kBf16, 1, c_.hidden_size, 0.1f, 1.0f, w.norm);
  }

  Status attention(const LayerPlan& p, AttentionWeights& w) {
    const int64_t D = c_.hidden_size, H = c_.num_attention_heads, d = c_.head_dim;
    const int64_t lora = c_.o_groups * c_.o_lora_rank;
    DSV4_TRY(fp8(c_.q_lora_rank, D, w.wq_a));
    DSV4_TRY(vector(WeightFormat::kBf16, 1, c_.q_lora_rank, 0.1f, 1.0f, w.q_norm));
    DSV4_TRY(fp8(H * d, c_.q_lora_rank, w.wq_b));
    DSV4_TRY(fp8(d, D, w.wkv));
    DSV4_TRY(vector(WeightFormat::kBf16, 1, d, 0.1f, 1.0f, w.kv_norm));
    DSV4_TRY(vector(WeightFormat::kF32, 1, H, 1.0f, 0.0f, w.sink));
    HostWeight wo_a = random_weight(WeightRole::kGrouped, WeightFormat::kFp8Tile128, lora,
                                    H * d / c_.o_groups, rng_);
    wo_a.groups = c_.o_groups;
    DSV4_TRY(pack(std::move(wo_a), w.wo_a));
    DSV4_TRY(fp8(D, lora, w.wo_b));
    if (p.has_compressor()) DSV4_TRY(compressor(p, d, w.compressor));
    if (!p.has_indexer()) return {};
    DSV4_TRY(fp8(c_.index_n_heads * c_.index_head_dim, c_.q_lora_rank, w.index_wq_b));
    DSV4_TRY(matrix(WeightRole::kLinear, WeightFormat::kBf16, c_.index_n_heads, D,
                    w.index_weights_proj));
    return compressor(p, c_.index_head_dim, w.index_compressor);
  }

  Status compressor(const LayerPlan& p, int64_t dim, CompressorWeights& w) {
    const int64_t columns = p.compressor_columns(dim);
    DSV4_TRY(matrix(WeightRole::kLinear, WeightFormat::kBf16, columns, c_.hidden_size, w.wkv));
    DSV4_TRY(matrix(WeightRole::kLinear, WeightFormat::kBf16, columns, c_.hidden_size, w.wgate));
    DSV4_TRY(vector(WeightFormat::kF32, p.ratio, columns, 0.5f, 0.0f, w.ape));
    return vector(WeightFormat::kBf16, 1, dim, 0.1f, 1.0f, w.norm);
  }

  Status ffn(const LayerPlan& p, FfnWeights& w) {
    const int64_t D = c_.hidden_size, I = c_.moe_intermediate_size, E = c_.n_routed_experts;
    DSV4_TRY(matrix(WeightRole::kLinear, WeightFormat::kBf16, E, D, w.gate));
    if (p.router == RouterKind::kHash) {
      DSV4_TRY(hash_table(w.tid2eid));
    } else {
      DSV4_TRY(vector(WeightFormat::kF32, 1, E, 0.1f, 0.0f, w.bias));
    }
    const auto experts = [&](int64_t rows, int64_t cols, PackedWeight& out) {
      const WeightFormat format =
          c_.expert_dtype == ExpertDtype::kFp8 ? WeightFormat::kFp8Tile128 : WeightFormat::kMxfp4;
      return pack(
          random_weight(WeightRole::kExperts, format, rows, cols, rng_, E, kDistinctExperts), out);
    };
    DSV4_TRY(experts(I, D, w.w1));
    DSV4_TRY(experts(D, I, w.w2));
    DSV4_TRY(experts(I, D, w.w3));
    const int64_t shared = I * c_.n_shared_experts;
    DSV4_TRY(fp8(shared, D, w.shared_w1));
    DSV4_TRY(fp8(D, shared, w.shared_w2));
    return fp8(shared, D, w.shared_w3);
  }

  // k different experts per token id.
  Status hash_table(PackedWeight& out) {
    const int64_t V = c_.vocab_size, k = c_.num_experts_per_tok, E = c_.n_routed_experts;
    HostWeight w{.role = WeightRole::kVector, .format = WeightFormat::kI32, .rows = V, .cols = k};
    w.matrices.push_back(std::make_shared<HostMatrix>());
    std::vector<uint8_t>& bytes = w.matrices[0]->elements;
    bytes.resize(static_cast<size_t>(V * k) * 8);
    for (int64_t v = 0; v < V; ++v) {
      const int64_t first = rng_.below(E);
      for (int64_t i = 0; i < k; ++i) {
        const int64_t id = (first + i * (E / k)) % E;
        memcpy(bytes.data() + (v * k + i) * 8, &id, 8);
      }
    }
    return pack(std::move(w), out);
  }

  Status vector(WeightFormat format, int64_t rows, int64_t cols, float spread, float mean,
                PackedWeight& out) {
    HostWeight w{.role = WeightRole::kVector, .format = format, .rows = rows, .cols = cols};
    w.matrices.push_back(std::make_shared<HostMatrix>());
    std::vector<uint8_t>& bytes = w.matrices[0]->elements;
    bytes.resize(static_cast<size_t>(weight_bytes(format, rows, cols)));
    for (int64_t i = 0; i < rows * cols; ++i) {
      const float value = mean + spread * rng_.normal();
      if (format == WeightFormat::kF32) {
        memcpy(bytes.data() + i * 4, &value, 4);
      } else {
        const bf16 rounded = to_bf16(value);
        memcpy(bytes.data() + i * 2, &rounded, 2);
      }
    }
    return pack(std::move(w), out);
  }

  Status matrix(WeightRole role, WeightFormat format, int64_t rows, int64_t cols,
                PackedWeight& out) {
    return pack(random_weight(role, format, rows, cols, rng_), out);
  }
  Status fp8(int64_t rows, int64_t cols, PackedWeight& out) {
    return matrix(WeightRole::kLinear, WeightFormat::kFp8Tile128, rows, cols, out);
  }

  Status pack(HostWeight w, PackedWeight& out) {
    DSV4_ASSIGN(out, backend_.pack(w.request()));
    out_.model.weights.bytes += out.bytes();
    if (out.bytes() == 0) out_.borrowed.push_back(std::move(w));
    return {};
  }

  Status frequencies(const LayerPlan& p, Buffer& out) {
    if (out.data()) return {};
    const std::vector<float> freqs = rope_frequencies(p.rope, c_.qk_rope_head_dim);
    const size_t bytes = freqs.size() * sizeof(float);
    DSV4_ASSIGN(out, backend_.allocate(bytes));
    DSV4_ASSIGN(const std::unique_ptr<Stream> stream, backend_.make_stream());
    DSV4_TRY(backend_.upload(*stream, out.data(), freqs.data(), bytes));
    return backend_.synchronize(*stream);
  }

  const ModelConfig& c_;
  Backend& backend_;
  Rng rng_;
  SyntheticModel& out_;
};

}  // namespace

Result<SyntheticModel> make_synthetic(const ModelConfig& config, Backend& backend, uint64_t seed,
                                      const ProgressSink& progress) {
  SyntheticModel out;
  out.model.config = config;
  out.model.plan = make_plan(config);
  DSV4_TRY(Maker(out.model.config, backend, seed, out).make(progress));
  return out;
}

}  // namespace dsv4::bench
