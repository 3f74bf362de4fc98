#include "engine/batch_builder.h"

#include <algorithm>

#include "base/str.h"

namespace dsv4 {
namespace {

// Every array starts on a 256-byte border.
int64_t align(int64_t n) {
  return (n + 63) / 64 * 64;
}

constexpr int64_t kSampleInts = sizeof(SampleRow) / sizeof(int32_t);
static_assert(sizeof(SampleRow) % sizeof(int32_t) == 0);

}  // namespace

BatchBuilder::Layout::Layout(const BatchLimits& limits, int64_t span) {
  max_pages = (limits.context + span - 1) / span;
  tokens = 0;
  positions = tokens + align(limits.max_rows);
  row_seq = positions + align(limits.max_rows);
  seq_begin = row_seq + align(limits.max_rows);
  seq_slot = seq_begin + align(limits.max_sequences + 1);
  logit_rows = seq_slot + align(limits.max_sequences);
  samples = logit_rows + align(limits.max_logit_rows);
  seq_pages = samples + align(limits.max_logit_rows * kSampleInts);
  end = seq_pages + align(limits.max_sequences * max_pages);
}

size_t BatchBuilder::device_bytes(const BatchLimits& limits, int64_t span) {
  return static_cast<size_t>(Layout(limits, span).end) * sizeof(int32_t);
}

Result<BatchBuilder> BatchBuilder::make(const BatchLimits& limits, int64_t vocab_size,
                                        const KvCache& cache, Backend& backend) {
  BatchBuilder builder(limits, Layout(limits, cache.span()));
  builder.vocab_size_ = vocab_size;
  builder.cache_ = &cache;
  builder.sequence_in_slot_.resize(static_cast<size_t>(cache.slots()));
  DSV4_ASSIGN(builder.host_, backend.allocate_staging(device_bytes(limits, cache.span())));
  DSV4_ASSIGN(builder.device_, backend.allocate(device_bytes(limits, cache.span())));
  return builder;
}

Status BatchBuilder::check(std::span<const SequenceRows> sequences) {
  int64_t rows = 0, logit_rows = 0;
  std::fill(sequence_in_slot_.begin(), sequence_in_slot_.end(), -1);
  for (size_t s = 0; s < sequences.size(); ++s) {
    const SequenceRows& seq = sequences[s];
    if (!seq.cache || seq.cache->cache() != cache_) {
      return Status(Code::kInvalidArgument,
                    cat("batch: sequence ", s, " has no place in the cache"));
    }
    int32_t& in_slot = sequence_in_slot_[static_cast<size_t>(seq.cache->slot())];
    if (in_slot >= 0) {
      return Status(Code::kInvalidArgument,
                    cat("batch: sequences ", in_slot, " and ", s, " are the same one"));
    }
    in_slot = static_cast<int32_t>(s);
    const std::ptrdiff_t n = std::ssize(seq.tokens);
    if (n == 0) return Status(Code::kInvalidArgument, cat("batch: sequence ", s, " has no tokens"));
    if (seq.cache->length() + n > limits_.context) {
      return Status(Code::kInvalidArgument,
                    cat("batch: sequence ", s, " would have ", seq.cache->length() + n,
                        " tokens, the context holds ", limits_.context, "; use a larger --ctx"));
    }
    DSV4_TRY(check_tokens(seq.tokens, vocab_size_));
    rows += n;
    logit_rows += seq.logit_rows();
  }
  if (rows == 0 || rows > limits_.max_rows || std::ssize(sequences) > limits_.max_sequences ||
      logit_rows > limits_.max_logit_rows) {
    return Status(Code::kInvalidArgument,
                  cat("batch: ", rows, " rows of ", sequences.size(), " sequences with ",
                      logit_rows, " rows of logits; room for ", limits_.max_rows, ", ",
                      limits_.max_sequences, " and ", limits_.max_logit_rows));
  }
  return {};
}

Result<ForwardBatch> BatchBuilder::build(std::span<const SequenceRows> sequences, Backend& backend,
                                         Stream& stream) {
  DSV4_TRY(check(sequences));
  for (size_t s = 0; s < sequences.size(); ++s) {
    const Status reserved = sequences[s].cache->reserve(std::ssize(sequences[s].tokens));
    if (!reserved.ok()) {
      for (size_t undo = 0; undo < s; ++undo) sequences[undo].cache->unreserve();
      return reserved;
    }
  }

  int32_t* const host = host_.as<int32_t>();
  SampleRow* const samples = reinterpret_cast<SampleRow*>(host + layout_.samples);
  int64_t row = 0, logit_rows = 0;
  const auto i32 = [](int64_t n) { return static_cast<int32_t>(n); };
  for (int64_t s = 0; s < std::ssize(sequences); ++s) {
    const SequenceRows& seq = sequences[static_cast<size_t>(s)];
    const int64_t n = std::ssize(seq.tokens), first = seq.cache->length();
    host[layout_.seq_begin + s] = i32(row);
    host[layout_.seq_slot + s] = i32(seq.cache->slot());
    // The tail of a page row is never read; zero keeps batches reproducible.
    int32_t* const pages = host + layout_.seq_pages + s * layout_.max_pages;
    const auto held = seq.cache->pages().first(
        static_cast<size_t>(std::min<int64_t>(std::ssize(seq.cache->pages()), layout_.max_pages)));
    std::fill(std::copy(held.begin(), held.end(), pages), pages + layout_.max_pages, 0);
    std::copy(seq.tokens.begin(), seq.tokens.end(), host + layout_.tokens + row);
    for (int64_t i = 0; i < n; ++i) {
      host[layout_.positions + row + i] = i32(first + i);
      host[layout_.row_seq + row + i] = i32(s);
      const bool wanted =
          seq.logits == LogitRows::kAll || (seq.logits == LogitRows::kLast && i == n - 1);
      if (!wanted) continue;
      samples[logit_rows] = seq.samples() ? seq.sample : SampleRow{};
      host[layout_.logit_rows + logit_rows++] = i32(row + i);
    }
    row += n;
  }
  host[layout_.seq_begin + std::ssize(sequences)] = i32(row);

  const int64_t used = layout_.seq_pages + std::ssize(sequences) * layout_.max_pages;
  const Status uploaded =
      backend.upload(stream, device_.data(), host, static_cast<size_t>(used) * sizeof(int32_t));
  if (!uploaded.ok()) {
    for (const SequenceRows& seq : sequences) seq.cache->unreserve();
    return uploaded;
  }
  const int32_t* const d = device_.as<const int32_t>();
  ForwardBatch batch;
  batch.view = {.rows = row,
                .sequences = std::ssize(sequences),
                .tokens = d + layout_.tokens,
                .positions = d + layout_.positions,
                .row_seq = d + layout_.row_seq,
                .seq_begin = d + layout_.seq_begin,
                .seq_slot = d + layout_.seq_slot,
                .seq_pages = d + layout_.seq_pages,
                .max_pages = layout_.max_pages};
  batch.logit_rows = d + layout_.logit_rows;
  batch.samples = reinterpret_cast<const SampleRow*>(d + layout_.samples);
  batch.R = logit_rows;
  return batch;
}

Status check_tokens(std::span<const int32_t> tokens, int64_t vocab_size) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab_size) {
      return Status(Code::kInvalidArgument,
                    cat("token ", i, " has id ", tokens[i], ": expected 0..", vocab_size - 1,
                        "; is the tokenizer the one of this model?"));
    }
  }
  return {};
}

}  // namespace dsv4
