// From tensor names to packed weights. One walk over the plan serves loading and the memory plan: the
// Binder either packs what it visits or only counts it.
#include <cstring>

#include "base/str.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/mapped_file.h"
#include "checkpoint/validate.h"
#include "model/rope.h"
#include "model/weights.h"

namespace dsv4 {
namespace {

class Binder {
 public:
  // backend == nullptr: count only, from headers.
  Binder(const Checkpoint& checkpoint, const ModelConfig& config, Backend* backend,
         const Backend& sizes, const ProgressSink& progress)
      : checkpoint_(checkpoint), config_(config), backend_(backend), sizes_(sizes), progress_(progress) {
    total_ = static_cast<int64_t>(checkpoint.data_bytes());
  }

  Status bind(const ModelPlan& plan, Weights& w) {
    const int64_t V = config_.vocab_size, D = config_.hidden_size;
    DSV4_TRY(matrix("embed.weight", WeightRole::kEmbed, V, D, w.embed));
    for (const LayerPlan& layer : plan.layers) {
      DSV4_TRY(bind_layer(layer, w.layers.emplace_back()));
    }
    DSV4_TRY(bind_head("", w.head));
    DSV4_TRY(matrix("head.weight", WeightRole::kLinear, V, D, w.lm_head));
    for (const LayerPlan& layer : plan.mtp) {
      MtpWeights& mtp = w.mtp.emplace_back();
      const std::string at = layer.prefix();
      DSV4_TRY(vector(at + "enorm.weight", DType::kBF16, {D}, mtp.enorm));
      DSV4_TRY(vector(at + "hnorm.weight", DType::kBF16, {D}, mtp.hnorm));
      DSV4_TRY(fp8(at + "e_proj", WeightRole::kLinear, D, D, mtp.e_proj));
      DSV4_TRY(fp8(at + "h_proj", WeightRole::kLinear, D, D, mtp.h_proj));
      DSV4_TRY(bind_layer(layer, mtp.layer));
      DSV4_TRY(bind_head(at, mtp.head));
    }
    if (backend_ && !plan.layers.empty()) {
      for (const LayerPlan& layer : plan.layers) {
        DSV4_TRY(frequencies(layer, layer.has_compressor() ? w.rope_compressed : w.rope_plain));
      }
      for (const LayerPlan& layer : plan.mtp) DSV4_TRY(frequencies(layer, w.rope_plain));
    }
    w.bytes = bytes_;
    return {};
  }

  size_t bytes() const { return bytes_; }

 private:
  Status bind_layer(const LayerPlan& layer, LayerWeights& w) {
    const std::string at = layer.prefix();
    DSV4_TRY(bind_hc(at + "hc_attn_", at + "attn_norm.weight", w.hc_attn));
    DSV4_TRY(bind_attention(layer, at + "attn.", w.attn));
    DSV4_TRY(bind_hc(at + "hc_ffn_", at + "ffn_norm.weight", w.hc_ffn));
    return bind_ffn(layer, at + "ffn.", w.ffn);
  }

  Status bind_hc(const std::string& at, const std::string& norm, HcSiteWeights& w) {
    const int64_t rows = config_.hc_rows(), D = config_.hidden_size;
    DSV4_TRY(vector(at + "fn", DType::kF32, {rows, config_.hc_mult * D}, w.fn));
    DSV4_TRY(vector(at + "base", DType::kF32, {rows}, w.base));
    DSV4_TRY(vector(at + "scale", DType::kF32, {3}, w.scale));
    return vector(norm, DType::kBF16, {D}, w.norm);
  }

  Status bind_head(const std::string& at, HeadWeights& w) {
    const int64_t hc = config_.hc_mult, D = config_.hidden_size;
    DSV4_TRY(vector(at + "hc_head_fn", DType::kF32, {hc, hc * D}, w.fn));
    DSV4_TRY(vector(at + "hc_head_base", DType::kF32, {hc}, w.base));
    DSV4_TRY(vector(at + "hc_head_scale", DType::kF32, {1}, w.scale));
    return vector(at + "norm.weight", DType::kBF16, {D}, w.norm);
  }

  Status bind_attention(const LayerPlan& layer, const std::string& at, AttentionWeights& w) {
    const ModelConfig& c = config_;
    const int64_t D = c.hidden_size, H = c.num_attention_heads, d = c.head_dim;
    const int64_t lora = c.o_groups * c.o_lora_rank;
    DSV4_TRY(fp8(at + "wq_a", WeightRole::kLinear, c.q_lora_rank, D, w.wq_a));
    DSV4_TRY(vector(at + "q_norm.weight", DType::kBF16, {c.q_lora_rank}, w.q_norm));
    DSV4_TRY(fp8(at + "wq_b", WeightRole::kLinear, H * d, c.q_lora_rank, w.wq_b));
    DSV4_TRY(fp8(at + "wkv", WeightRole::kLinear, d, D, w.wkv));
    DSV4_TRY(vector(at + "kv_norm.weight", DType::kBF16, {d}, w.kv_norm));
    DSV4_TRY(vector(at + "attn_sink", DType::kF32, {H}, w.sink));
    DSV4_TRY(fp8(at + "wo_a", WeightRole::kGrouped, lora, H * d / c.o_groups, w.wo_a));
    DSV4_TRY(fp8(at + "wo_b", WeightRole::kLinear, D, lora, w.wo_b));
    if (layer.has_compressor()) DSV4_TRY(bind_compressor(layer, at + "compressor.", d, w.compressor));
    if (!layer.has_indexer()) return {};
    const int64_t heads = c.index_n_heads, e = c.index_head_dim;
    DSV4_TRY(fp8(at + "indexer.wq_b", WeightRole::kLinear, heads * e, c.q_lora_rank, w.index_wq_b));
    DSV4_TRY(matrix(at + "indexer.weights_proj.weight", WeightRole::kLinear, heads, D, w.index_weights_proj));
    return bind_compressor(layer, at + "indexer.compressor.", e, w.index_compressor);
  }

  Status bind_compressor(const LayerPlan& layer, const std::string& at, int64_t dim, CompressorWeights& w) {
    const int64_t columns = layer.compressor_columns(dim);
    DSV4_TRY(matrix(at + "wkv.weight", WeightRole::kLinear, columns, config_.hidden_size, w.wkv));
    DSV4_TRY(matrix(at + "wgate.weight", WeightRole::kLinear, columns, config_.hidden_size, w.wgate));
    DSV4_TRY(vector(at + "ape", DType::kF32, {layer.ratio, columns}, w.ape));
    return vector(at + "norm.weight", DType::kBF16, {dim}, w.norm);
  }

  Status bind_ffn(const LayerPlan& layer, const std::string& at, FfnWeights& w) {
    const ModelConfig& c = config_;
    const int64_t D = c.hidden_size, I = c.moe_intermediate_size, E = c.n_routed_experts;
    DSV4_TRY(matrix(at + "gate.weight", WeightRole::kLinear, E, D, w.gate));
    if (layer.router == RouterKind::kHash) {
      DSV4_TRY(bind_hash_table(at + "gate.tid2eid", w.tid2eid));
    } else {
      DSV4_TRY(vector(at + "gate.bias", DType::kF32, {E}, w.bias));
    }
    DSV4_TRY(experts(at, "w1", I, D, w.w1));
    DSV4_TRY(experts(at, "w2", D, I, w.w2));
    DSV4_TRY(experts(at, "w3", I, D, w.w3));
    const int64_t shared = I * c.n_shared_experts;
    DSV4_TRY(fp8(at + "shared_experts.w1", WeightRole::kLinear, shared, D, w.shared_w1));
    DSV4_TRY(fp8(at + "shared_experts.w2", WeightRole::kLinear, D, shared, w.shared_w2));
    return fp8(at + "shared_experts.w3", WeightRole::kLinear, shared, D, w.shared_w3);
  }

  // An id outside [0, E) would index past the experts, so the table is checked once, here.
  Status bind_hash_table(const std::string& name, PackedWeight& out) {
    const int64_t V = config_.vocab_size, k = config_.num_experts_per_tok, E = config_.n_routed_experts;
    DSV4_ASSIGN(const TensorRef table, tensor(name, DType::kI64, {V, k}));
    for (int64_t i = 0; backend_ && i < V * k; ++i) {
      int64_t id;
      memcpy(&id, static_cast<const char*>(table.data) + i * 8, 8);
      if (id < 0 || id >= E) {
        return Status(Code::kCorrupt, cat(location(name), " entry [", i / k, ", ", i % k,
                                          "]: expected an expert id in 0..", E - 1, ", found ", id,
                                          "; the file is damaged or belongs to another config.json"));
      }
    }
    return pack({.role = WeightRole::kVector, .rows = V, .cols = k,
                 .sources = {{.format = WeightFormat::kI32, .weight = table}}}, out);
  }

  Status vector(const std::string& name, DType dtype, const Shape& shape, PackedWeight& out) {
    DSV4_ASSIGN(const TensorRef ref, tensor(name, dtype, shape));
    const int64_t rows = shape.rank > 1 ? shape[0] : 1, cols = shape[shape.rank - 1];
    const WeightFormat format = dtype == DType::kF32 ? WeightFormat::kF32 : WeightFormat::kBf16;
    return pack({.role = WeightRole::kVector, .rows = rows, .cols = cols,
                 .sources = {{.format = format, .weight = ref}}}, out);
  }

  // A BF16 matrix.
  Status matrix(const std::string& name, WeightRole role, int64_t rows, int64_t cols, PackedWeight& out) {
    DSV4_ASSIGN(const TensorRef ref, tensor(name, DType::kBF16, {rows, cols}));
    return pack({.role = role, .rows = rows, .cols = cols, .sources = {{.format = WeightFormat::kBf16, .weight = ref}}},
                out);
  }

  // An FP8 matrix with its tile scales, "<name>.weight" and "<name>.scale".
  Status fp8(const std::string& name, WeightRole role, int64_t rows, int64_t cols, PackedWeight& out) {
    DSV4_ASSIGN(WeightSource source, fp8_source(name, rows, cols));
    PackRequest request{.role = role, .rows = rows, .cols = cols, .sources = {source}};
    if (role == WeightRole::kGrouped) request.groups = config_.o_groups;
    return pack(request, out);
  }

  Result<WeightSource> fp8_source(const std::string& name, int64_t rows, int64_t cols) {
    WeightSource source{.format = WeightFormat::kFp8Tile128};
    DSV4_ASSIGN(source.weight, tensor(name + ".weight", DType::kE4M3, {rows, cols}));
    DSV4_ASSIGN(source.scale, scale(name + ".scale", DType::kE8M0, {(rows + 127) / 128, (cols + 127) / 128}));
    return source;
  }

  Status experts(const std::string& at, const char* which, int64_t rows, int64_t cols, PackedWeight& out) {
    PackRequest request{.role = WeightRole::kExperts, .rows = rows, .cols = cols};
    for (int64_t e = 0; e < config_.n_routed_experts; ++e) {
      DSV4_ASSIGN(WeightSource source, expert_source(cat(at, "experts.", e, ".", which), rows, cols));
      request.sources.push_back(source);
    }
    return pack(request, out);
  }

  // NVFP4 is recognised by weight_scale_2, tensor by tensor; a config may say nothing or lie.
  Result<WeightSource> expert_source(const std::string& name, int64_t rows, int64_t cols) {
    if (checkpoint_.find(name + ".weight_scale_2")) {
      WeightSource source{.format = WeightFormat::kNvfp4};
      DSV4_ASSIGN(source.weight, tensor(name + ".weight", DType::kU8, {rows, cols / 2}));
      DSV4_ASSIGN(source.scale, scale(name + ".weight_scale", DType::kE4M3, {rows, cols / 16}));
      DSV4_ASSIGN(const TensorRef global, tensor(name + ".weight_scale_2", DType::kF32, {}));
      if (backend_) memcpy(&source.global_scale, global.data, sizeof(float));
      return source;
    }
    const TensorEntry* entry = checkpoint_.find(name + ".weight");
    if (entry && entry->dtype == DType::kE4M3) return fp8_source(name, rows, cols);
    WeightSource source{.format = WeightFormat::kMxfp4};
    DSV4_ASSIGN(source.weight, tensor(name + ".weight", DType::kI8, {rows, cols / 2}));
    DSV4_ASSIGN(source.scale, scale(name + ".scale", DType::kE8M0, {rows, cols / 32}));
    return source;
  }

  Result<TensorRef> scale(const std::string& name, DType dtype, const Shape& shape) {
    DSV4_ASSIGN(const TensorRef ref, tensor(name, dtype, shape));
    if (backend_) DSV4_TRY(check_scales(ref, location(name)));
    return ref;
  }

  Result<TensorRef> tensor(const std::string& name, DType dtype, const Shape& shape) {
    DSV4_ASSIGN(const TensorEntry* entry, checkpoint_.entry(name, dtype, shape));
    if (backend_) return checkpoint_.view(*entry);
    return TensorRef{.data = nullptr, .dtype = dtype, .shape = shape};
  }

  std::string location(const std::string& name) const {
    return cat(checkpoint_.shard_path(checkpoint_.find(name)->shard), ": ", name);
  }

  Status pack(const PackRequest& request, PackedWeight& out) {
    if (!backend_) {
      bytes_ += sizes_.packed_bytes(request);
      return {};
    }
    DSV4_ASSIGN(out, backend_->pack(request));
    bytes_ += out.bytes();
    for (const WeightSource& s : request.sources) {
      done_ += static_cast<int64_t>(s.weight.bytes() + (s.scale.data ? s.scale.bytes() : 0));
      // The packed copy is what is read from now on; both together may be more than there is memory.
      drop_pages(s.weight);
      if (s.scale.data) drop_pages(s.scale);
    }
    if (progress_) progress_({.stage = "loading weights", .done = done_, .total = total_, .unit = "bytes"});
    return {};
  }

  Status frequencies(const LayerPlan& layer, Buffer& out) {
    if (out.data()) return {};
    const std::vector<float> freqs = rope_frequencies(layer.rope, config_.qk_rope_head_dim);
    const size_t bytes = freqs.size() * sizeof(float);
    DSV4_ASSIGN(out, backend_->allocate(bytes));
    DSV4_ASSIGN(std::unique_ptr<Stream> stream, backend_->make_stream());
    DSV4_TRY(backend_->upload(*stream, out.data(), freqs.data(), bytes));
    return backend_->synchronize(*stream);
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  Backend* backend_;
  const Backend& sizes_;
  const ProgressSink& progress_;
  size_t bytes_ = 0;
  int64_t done_ = 0, total_ = 0;
};

}  // namespace

Result<Weights> bind_weights(const Checkpoint& checkpoint, const ModelConfig& config,
                             const ModelPlan& plan, Backend& backend, const ProgressSink& progress) {
  Weights weights;
  DSV4_TRY(Binder(checkpoint, config, &backend, backend, progress).bind(plan, weights));
  return weights;
}

Result<size_t> packed_weight_bytes(const Checkpoint& checkpoint, const ModelConfig& config,
                                   const ModelPlan& plan, const Backend& backend) {
  Weights none;
  Binder binder(checkpoint, config, nullptr, backend, {});
  DSV4_TRY(binder.bind(plan, none));
  return binder.bytes();
}

}  // namespace dsv4
