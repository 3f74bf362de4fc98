#include "engine/runner.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/str.h"

namespace dsv4 {

Runner::Runner(const Model& model, KvCache& cache, Backend& backend, const OpTable& ops,
               std::unique_ptr<Stream> stream, BatchBuilder builder, Activations activations,
               Buffer logits, Buffer tokens)
    : model_(model),
      cache_(cache),
      backend_(backend),
      stream_(std::move(stream)),
      builder_(std::move(builder)),
      activations_(std::move(activations)),
      workspace_(backend),
      context_{backend, ops, *stream_, workspace_},
      logits_(std::move(logits)),
      tokens_(std::move(tokens)) {}

Result<std::unique_ptr<Runner>> Runner::make(const Model& model, KvCache& cache,
                                             const BatchLimits& limits, Backend& backend,
                                             const OpTable& ops) {
  if (limits.max_rows < 1 || limits.max_sequences < 1 || limits.max_logit_rows < 0 ||
      limits.context < 1 || limits.context > model.config.max_position_embeddings) {
    return Status(Code::kInvalidArgument,
                  cat("runner: ", limits.max_rows, " rows, ", limits.max_sequences, " sequences, ",
                      limits.max_logit_rows, " rows of logits, context ", limits.context,
                      ": expected at least 1 row, 1 sequence and a context of 1..",
                      model.config.max_position_embeddings));
  }
  DSV4_ASSIGN(auto stream, backend.make_stream());
  DSV4_ASSIGN(auto builder, BatchBuilder::make(limits, model.config.vocab_size, cache, backend));
  DSV4_ASSIGN(auto activations, allocate_activations(model.config, model.plan, limits.max_rows,
                                                     limits.max_logit_rows, backend));
  DSV4_ASSIGN(Buffer logits,
              backend.allocate_staging(
                  static_cast<size_t>(limits.max_logit_rows * model.config.vocab_size) * sizeof(float)));
  DSV4_ASSIGN(Buffer tokens,
              backend.allocate_staging(static_cast<size_t>(limits.max_logit_rows) * sizeof(int32_t)));
  return std::unique_ptr<Runner>(new Runner(model, cache, backend, ops, std::move(stream), std::move(builder),
                                            std::move(activations), std::move(logits), std::move(tokens)));
}

Result<ForwardBatch> Runner::prepare(std::span<const SequenceRows> sequences) {
  DSV4_ASSIGN(const ForwardBatch batch, builder_.build(sequences));
  DSV4_TRY(builder_.upload(backend_, *stream_));
  return batch;
}

Status Runner::download_logits(int64_t first, int64_t rows) {
  const int64_t vocab = model_.config.vocab_size;
  return backend_.download(*stream_, logits_.as<float>() + first * vocab, activations_.logits + first * vocab,
                           static_cast<size_t>(rows * vocab) * sizeof(float));
}

Status Runner::wait() {
  wait_began_ = Clock::now();
  return backend_.synchronize(*stream_);
}

Result<LogitsView> Runner::read_logits(int64_t rows) {
  if (rows > 0) DSV4_TRY(download_logits(0, rows));
  DSV4_TRY(wait());
  return LogitsView{.data = logits_.as<float>(), .rows = rows, .vocab = model_.config.vocab_size};
}

Status Runner::download_unsampled(std::span<const SequenceRows> sequences) {
  int64_t first = 0, row = 0;  // rows first .. row - 1 are neighbours and wait to be downloaded
  const auto download = [&](int64_t next) -> Status {
    if (row > first) DSV4_TRY(download_logits(first, row - first));
    first = row = next;
    return {};
  };
  for (const SequenceRows& seq : sequences) {
    if (seq.samples()) {
      DSV4_TRY(download(row + 1));
    } else {
      row += seq.logit_rows();
    }
  }
  return download(row);
}

Result<StepResult> Runner::run(std::span<const SequenceRows> sequences, bool* launched) {
  if (launched) *launched = false;
  const Clock::time_point began = Clock::now();
  DSV4_ASSIGN(const ForwardBatch batch, builder_.build(sequences));
  if (launched) *launched = true;
  DSV4_TRY(step(batch));
  DSV4_TRY(download_unsampled(sequences));
  DSV4_TRY(wait());
  host_seconds_ = std::chrono::duration<double>(wait_began_ - began).count();

  StepResult result{{.data = logits_.as<float>(), .rows = batch.R, .vocab = model_.config.vocab_size},
                    {tokens_.as<int32_t>(), static_cast<size_t>(batch.R)}};
  int64_t row = 0;
  for (const SequenceRows& seq : sequences) {
    // The logits of a row without a token say what is wrong with it.
    if (seq.samples() && !result.has_token(row)) {
      DSV4_TRY(download_logits(row, 1));
      DSV4_TRY(backend_.synchronize(*stream_));
    }
    row += seq.logit_rows();
  }
  return result;
}

Result<WarmUp> Runner::warm_up(const ProgressSink& progress) {
  WarmUp done;
  if (!backend_.can_record()) return done;
  const Clock::time_point began = Clock::now();
  const auto ready = [&](int64_t steps, int64_t all) {
    if (progress) progress({.stage = "steps", .done = steps, .total = all, .unit = "recorded"});
  };
  const BatchLimits& l = limits();
  const int64_t most = std::min({l.max_sequences, l.max_rows, l.max_logit_rows, cache_.free_slots(), cache_.total_pages()});
  const auto sizes = static_cast<int64_t>(most > 0 ? std::bit_width(static_cast<uint64_t>(most)) : 0);
  ready(0, sizes);
  // The largest first, so that memory is found once.
  const std::vector<int32_t> tokens(
      static_cast<size_t>(std::min({l.max_rows, l.context, cache_.total_pages() * cache_.span()})), 0);
  {
    DSV4_ASSIGN(SequenceCache sequence, cache_.open());
    const SequenceRows chunk{.cache = &sequence, .tokens = tokens, .logits = LogitRows::kNone};
    DSV4_TRY(run({&chunk, 1}).status());
  }
  for (int64_t n = sizes > 0 ? int64_t{1} << (sizes - 1) : 0; n > 0; n /= 2) {
    std::vector<SequenceCache> sequences;
    for (int64_t i = 0; i < n; ++i) {
      DSV4_ASSIGN(SequenceCache sequence, cache_.open());
      sequences.push_back(std::move(sequence));
    }
    std::vector<SequenceRows> rows;
    for (SequenceCache& sequence : sequences) {
      rows.push_back({.cache = &sequence,
                      .tokens = std::span(tokens).first(1),
                      .sample = {.kind = SampleKind::kLargest}});
    }
    for (int i = 0; i < 2; ++i) DSV4_TRY(run(rows).status());
    ready(++done.steps, sizes);
  }
  done.seconds = std::chrono::duration<double>(Clock::now() - began).count();
  return done;
}

// Everything that differs between two steps of one shape lies in the batch's arrays, whose place is
// fixed, here and on the device, and tokens come back to a fixed place too; so a recorded step is the
// step, with both copies in it.
Status Runner::step(const ForwardBatch& batch) {
  const auto body = [this, batch]() -> Status {
    DSV4_TRY(builder_.upload(backend_, *stream_));
    DSV4_TRY(forward(model_, activations_, batch, cache_.layers(), context_));
    return backend_.download(*stream_, tokens_.data(), activations_.tokens,
                             static_cast<size_t>(batch.R) * sizeof(int32_t));
  };
  launches_ = 0;
  const int64_t rows = batch.view.rows;
  if (!replay_ || !backend_.can_record() || rows != batch.view.sequences || rows != batch.R) return body();
  const auto [at, first] = recorded_.try_emplace(rows);
  if (first) return body();
  if (!at->second) {
    DSV4_ASSIGN(at->second, backend_.record(*stream_, body));
  }
  launches_ = at->second->launches();
  return backend_.launch(*stream_, *at->second);
}

}  // namespace dsv4
