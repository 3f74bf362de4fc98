#include "api/verify.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "base/str.h"
#include "engine/runner.h"
#include "formats/bf16.h"

namespace dsv4 {
namespace {

// Tensors of a golden file, in aligned memory.
struct Golden {
  std::vector<int32_t> tokens;  // [P+S]
  int64_t P = 0, S = 0;
  std::vector<bf16> prefill_streams, decode_streams;  // [layers+1, P or S, hc, D]
  std::vector<float> prefill_logits, decode_logits;   // [P or S, V]
  std::vector<float> mtp_logits;                      // [V], empty where the model has no MTP block
};

template <class T>
Status read(const Checkpoint& file, std::string_view name, DType dtype, const Shape& shape,
            std::vector<T>& out) {
  DSV4_ASSIGN(const TensorRef ref, file.tensor(name, dtype, shape));
  out.resize(static_cast<size_t>(shape.elements()));
  memcpy(out.data(), ref.data, ref.bytes());
  return {};
}

Result<Golden> read_golden(const Checkpoint& file, const Model& model) {
  Golden g;
  std::vector<int32_t> prompt;
  DSV4_TRY(read(file, "n_prompt", DType::kI32, {1}, prompt));
  const TensorEntry* tokens = file.find("tokens");
  const int64_t total = tokens && tokens->shape.rank == 1 ? tokens->shape[0] : 0;
  DSV4_TRY(read(file, "tokens", DType::kI32, {total}, g.tokens));
  g.P = prompt[0];
  g.S = total - g.P;
  if (g.P < 2 || g.S < 1) {
    return Status(Code::kCorrupt, cat(file.path(), ": n_prompt: expected 2..", total - 1, ", found ", g.P,
                                      "; this is not a golden file of this program"));
  }
  const ModelConfig& c = model.config;
  const int64_t layers = c.num_hidden_layers + 1, hc = c.hc_mult, D = c.hidden_size, V = c.vocab_size;
  DSV4_TRY(read(file, "prefill_streams", DType::kBF16, {layers, g.P, hc, D}, g.prefill_streams));
  DSV4_TRY(read(file, "decode_streams", DType::kBF16, {layers, g.S, hc, D}, g.decode_streams));
  DSV4_TRY(read(file, "prefill_logits", DType::kF32, {g.P, V}, g.prefill_logits));
  DSV4_TRY(read(file, "decode_logits", DType::kF32, {g.S, V}, g.decode_logits));
  if (!model.plan.mtp.empty()) {
    DSV4_TRY(read(file, "mtp_logits_last", DType::kF32, {V}, g.mtp_logits));
  }
  return g;
}

double cosine(const float* a, const float* b, int64_t n) {
  double ab = 0.0, aa = 0.0, bb = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    ab += x * y;
    aa += x * x;
    bb += y * y;
  }
  return ab / std::sqrt(aa * bb);
}

int64_t argmax(const float* x, int64_t n) { return std::max_element(x, x + n) - x; }

// Collects positions of one phase of one layer.
class PhaseStats {
 public:
  void add(const bf16* out, const bf16* ref, const bf16* in, int64_t n) {
    double dot = 0.0, oo = 0.0, rr = 0.0, error = 0.0, change = 0.0;
    for (int64_t i = 0; i < n; ++i) {
      const double o = static_cast<double>(to_float(out[i])), r = static_cast<double>(to_float(ref[i]));
      const double before = static_cast<double>(to_float(in[i]));
      dot += o * r;
      oo += o * o;
      rr += r * r;
      error += (o - r) * (o - r);
      change += (r - before) * (r - before);
    }
    cosine_sum_ += dot / std::sqrt(oo * rr);
    errors_.push_back(std::sqrt(error / change));
  }

  LayerPhase result() {
    LayerPhase p;
    p.mean_cosine = cosine_sum_ / static_cast<double>(errors_.size());
    std::sort(errors_.begin(), errors_.end());
    p.median_error = errors_[errors_.size() / 2];
    p.max_error = errors_.back();
    return p;
  }

 private:
  double cosine_sum_ = 0.0;
  std::vector<double> errors_;
};

class Verifier {
 public:
  Verifier(const LoadedModel& loaded, const Checkpoint& file, Golden golden, KvCache& cache, Runner& runner,
           const ProgressSink& progress)
      : model_(*loaded.model), backend_(*loaded.backend), file_(file), golden_(std::move(golden)),
        cache_(cache), runner_(runner), progress_(progress) {
    row_ = model_.config.hc_mult * model_.config.hidden_size;
  }

  Status run(VerifyReport& report) {
    report.prompt_tokens = golden_.P;
    report.decode_tokens = golden_.S;
    const int64_t layers = static_cast<int64_t>(model_.plan.layers.size());
    for (int64_t layer = 0; layer < layers; ++layer) {
      advance(layer, layers + 2);
      DSV4_TRY(check_layer(layer, report.layers.emplace_back()));
    }
    advance(layers, layers + 2);
    if (!model_.plan.mtp.empty()) DSV4_TRY(check_mtp(report));
    advance(layers + 1, layers + 2);
    DSV4_TRY(check_end_to_end(report));
    advance(layers + 2, layers + 2);
    return {};
  }

 private:
  void advance(int64_t done, int64_t total) const {
    if (progress_) progress_({.stage = "verifying", .done = done, .total = total, .unit = "parts"});
  }

  std::span<const int32_t> tokens(int64_t begin, int64_t n) const {
    return std::span<const int32_t>(golden_.tokens).subspan(static_cast<size_t>(begin), static_cast<size_t>(n));
  }

  // Runs `n` rows of one layer from the golden streams `in` behind what `sequence` holds.
  Status run_rows(int64_t layer, SequenceCache& sequence, std::span<const int32_t> ids, const bf16* in,
                  std::vector<bf16>& out) {
    const SequenceRows rows{.cache = &sequence, .tokens = ids, .logits = LogitRows::kNone};
    DSV4_ASSIGN(const ForwardBatch batch, runner_.prepare({&rows, 1}));
    Activations& act = runner_.activations();
    const size_t n = ids.size() * static_cast<size_t>(row_);
    const size_t at = static_cast<size_t>(layer);
    DSV4_TRY(backend_.upload(runner_.stream(), act.streams, in, n * sizeof(bf16)));
    DSV4_TRY(run_layer(model_, model_.weights.layers[at], model_.plan.layers[at], act.streams, act, batch,
                       cache_.layers()[at], runner_.context()));
    out.resize(n);
    DSV4_TRY(backend_.download(runner_.stream(), out.data(), act.streams, n * sizeof(bf16)));
    DSV4_TRY(backend_.synchronize(runner_.stream()));
    return sequence.commit(static_cast<int64_t>(ids.size()));
  }

  Status check_layer(int64_t layer, LayerReport& report) {
    const LayerPlan& plan = model_.plan.layers[static_cast<size_t>(layer)];
    report.layer = layer;
    report.kind = attention_kind_name(plan.attention);
    DSV4_ASSIGN(SequenceCache sequence, cache_.open());
    const int64_t P = golden_.P, S = golden_.S;
    std::vector<bf16> out;
    PhaseStats prefill, decode;

    const bf16* in = golden_.prefill_streams.data() + layer * P * row_;
    DSV4_TRY(run_rows(layer, sequence, tokens(0, P), in, out));
    for (int64_t t = 0; t < P; ++t) {
      prefill.add(out.data() + t * row_, in + (P + t) * row_, in + t * row_, row_);
    }
    if (plan.has_indexer()) DSV4_TRY(compare_selection(layer, report));

    in = golden_.decode_streams.data() + layer * S * row_;
    for (int64_t s = 0; s < S; ++s) {
      DSV4_TRY(run_rows(layer, sequence, tokens(P + s, 1), in + s * row_, out));
      decode.add(out.data(), in + (S + s) * row_, in + s * row_, row_);
    }
    report.prefill = prefill.result();
    report.decode = decode.result();
    return {};
  }

  Status compare_selection(int64_t layer, LayerReport& report) {
    const std::string name = cat("prefill_topk_layer", layer);
    if (!file_.find(name)) return {};
    const int64_t P = golden_.P, k = model_.config.index_topk;
    std::vector<int32_t> expected, found(static_cast<size_t>(P * k));
    DSV4_TRY(read(file_, name, DType::kI32, {P, k}, expected));
    DSV4_TRY(backend_.download(runner_.stream(), found.data(), runner_.activations().selected,
                               found.size() * sizeof(int32_t)));
    DSV4_TRY(backend_.synchronize(runner_.stream()));
    int64_t equal = 0;
    for (int64_t t = 0; t < P; ++t) {
      const auto begin = t * k, end = begin + k;
      std::sort(expected.begin() + begin, expected.begin() + end);
      std::sort(found.begin() + begin, found.begin() + end);
      equal += std::equal(expected.begin() + begin, expected.begin() + end, found.begin() + begin);
    }
    report.selection_agreement = static_cast<double>(equal) / static_cast<double>(P);
    return {};
  }

  // The block at positions 0..P-2 with the tokens one ahead, from the golden streams.
  Status check_mtp(VerifyReport& report) {
    const int64_t P = golden_.P;
    DSV4_ASSIGN(SequenceCache sequence, cache_.open());
    const SequenceRows rows{.cache = &sequence, .tokens = tokens(1, P - 1), .logits = LogitRows::kLast};
    DSV4_ASSIGN(const ForwardBatch batch, runner_.prepare({&rows, 1}));
    const size_t layers = model_.plan.layers.size();
    const bf16* in = golden_.prefill_streams.data() + static_cast<int64_t>(layers) * P * row_;
    Activations& act = runner_.activations();
    DSV4_TRY(backend_.upload(runner_.stream(), act.streams, in,
                             static_cast<size_t>((P - 1) * row_) * sizeof(bf16)));
    DSV4_TRY(forward_mtp(model_, 0, act.streams, act, batch, cache_.layers()[layers], runner_.context()));
    DSV4_ASSIGN(const LogitsView logits, runner_.read_logits(1));
    DSV4_TRY(sequence.commit(P - 1));
    report.mtp_cosine = cosine(logits.data, golden_.mtp_logits.data(), logits.vocab);
    return {};
  }

  Status check_end_to_end(VerifyReport& report) {
    const int64_t P = golden_.P, S = golden_.S, V = model_.config.vocab_size;
    DSV4_ASSIGN(SequenceCache sequence, cache_.open());
    auto step = [&](int64_t begin, int64_t n, const std::vector<float>& expected, int64_t first,
                    EndToEndPhase& phase, double weight) -> Status {
      const SequenceRows rows{.cache = &sequence, .tokens = tokens(begin, n), .logits = LogitRows::kAll};
      DSV4_ASSIGN(const LogitsView logits, runner_.run({&rows, 1}));
      for (int64_t i = 0; i < n; ++i) {
        const float* ref = expected.data() + (first + i) * V;
        phase.mean_cosine += cosine(logits.row(i).data(), ref, V) * weight;
        phase.argmax_agreement += (argmax(logits.row(i).data(), V) == argmax(ref, V) ? 1.0 : 0.0) * weight;
      }
      return sequence.commit(n);
    };
    DSV4_TRY(step(0, P, golden_.prefill_logits, 0, report.prefill, 1.0 / static_cast<double>(P)));
    for (int64_t s = 0; s < S; ++s) {
      DSV4_TRY(step(P + s, 1, golden_.decode_logits, s, report.decode, 1.0 / static_cast<double>(S)));
    }
    return {};
  }

  const Model& model_;
  Backend& backend_;
  const Checkpoint& file_;
  Golden golden_;
  KvCache& cache_;
  Runner& runner_;
  const ProgressSink& progress_;
  int64_t row_ = 0;  // values of one position's streams, hc * D
};

// NaN fails either way.
void expect_at_least(const std::string& what, double found, double limit, std::vector<std::string>& out) {
  if (!(found >= limit)) out.push_back(cat(what, ": expected at least ", limit, ", found ", found));
}
void expect_at_most(const std::string& what, double found, double limit, std::vector<std::string>& out) {
  if (!(found <= limit)) out.push_back(cat(what, ": expected at most ", limit, ", found ", found));
}

void judge(VerifyReport& r) {
  const VerifyLimits& l = r.limits;
  for (const LayerReport& layer : r.layers) {
    const std::string at = cat("layer ", layer.layer, " (", layer.kind, ") ");
    expect_at_least(at + "prefill mean cosine", layer.prefill.mean_cosine, l.layer_cosine, r.failures);
    expect_at_least(at + "decode mean cosine", layer.decode.mean_cosine, l.layer_cosine, r.failures);
    expect_at_most(at + "prefill median error", layer.prefill.median_error, l.prefill_error, r.failures);
    expect_at_most(at + "decode median error", layer.decode.median_error, l.decode_error, r.failures);
  }
  if (r.mtp_cosine) expect_at_least("MTP cosine", *r.mtp_cosine, l.mtp_cosine, r.failures);
  for (const auto& [name, phase] : {std::pair{"prefill", r.prefill}, std::pair{"decode", r.decode}}) {
    const std::string at = cat("end to end ", name, " ");
    expect_at_least(at + "mean cosine", phase.mean_cosine, l.end_to_end_cosine, r.failures);
    expect_at_least(at + "argmax agreement", phase.argmax_agreement, l.end_to_end_agreement, r.failures);
  }
}

}  // namespace

VerifyLimits default_limits(bool exact_rounding) {
  if (exact_rounding) {
    return {.layer_cosine = 0.99995, .prefill_error = 0.001, .decode_error = 0.02, .mtp_cosine = 0.9999};
  }
  // FP32 instead of BF16 inside the q norm alone accounts for this.
  return {.layer_cosine = 0.9998, .prefill_error = 0.035, .decode_error = 0.035, .mtp_cosine = 0.999};
}

Result<VerifyReport> verify_golden(const LoadedModel& loaded, const std::string& golden_path,
                                   const VerifyLimits& limits, const ProgressSink& progress) {
  DSV4_ASSIGN(const Checkpoint file, Checkpoint::open(golden_path));
  const Model& model = *loaded.model;
  DSV4_ASSIGN(Golden golden, read_golden(file, model));
  const int64_t total = static_cast<int64_t>(golden.tokens.size());
  DSV4_ASSIGN(const std::unique_ptr<KvCache> cache,
              KvCache::make(make_cache_spec(model.config, model.plan),
                            {.max_sequences = 1, .max_tokens = total}, *loaded.backend));
  DSV4_ASSIGN(const std::unique_ptr<Runner> runner,
              Runner::make(model, *cache,
                           {.max_rows = golden.P, .max_sequences = 1, .max_logit_rows = golden.P, .context = total},
                           *loaded.backend, loaded.backend->ops()));
  VerifyReport report;
  report.backend = loaded.backend->describe();
  report.limits = limits;
  DSV4_TRY(Verifier(loaded, file, std::move(golden), *cache, *runner, progress).run(report));
  judge(report);
  return report;
}

}  // namespace dsv4
