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

BatchBuilder::Layout::Layout(const Size& size) {
  tokens = 0;
  positions = tokens + align(size.rows);
  row_seq = positions + align(size.rows);
  seq_begin = row_seq + align(size.rows);
  seq_slot = seq_begin + align(size.sequences + 1);
  logit_rows = seq_slot + align(size.sequences);
  samples = logit_rows + align(size.logit_rows);
  end = samples + align(size.logit_rows * kSampleInts);
}

int64_t BatchBuilder::pages_per_sequence(const BatchLimits& limits, int64_t span) {
  return (limits.context + span - 1) / span;
}

BatchBuilder::BatchBuilder(const BatchLimits& limits, int64_t span)
    : limits_(limits),
      max_pages_(pages_per_sequence(limits, span)),
      pages_at_(Layout({limits.max_rows, limits.max_sequences, limits.max_logit_rows}).end),
      listed_(static_cast<size_t>(limits.max_sequences)) {}

size_t BatchBuilder::device_bytes(const BatchLimits& limits, int64_t span) {
  const Layout largest({limits.max_rows, limits.max_sequences, limits.max_logit_rows});
  const int64_t pages = limits.max_sequences * pages_per_sequence(limits, span);
  return static_cast<size_t>(largest.end + align(pages)) * sizeof(int32_t);
}

Result<BatchBuilder> BatchBuilder::make(const BatchLimits& limits, int64_t vocab_size,
                                        const KvCache& cache, Backend& backend) {
  BatchBuilder builder(limits, cache.span());
  builder.vocab_size_ = vocab_size;
  builder.cache_ = &cache;
  builder.sequence_in_slot_.resize(static_cast<size_t>(cache.slots()));
  DSV4_ASSIGN(builder.host_, backend.allocate_staging(device_bytes(limits, cache.span())));
  DSV4_ASSIGN(builder.device_, backend.allocate(device_bytes(limits, cache.span())));
  return builder;
}

Result<BatchBuilder::Size> BatchBuilder::check(std::span<const SequenceRows> sequences) {
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
  return Size{rows, std::ssize(sequences), logit_rows};
}

// Long contexts have many pages, and from one step to the next hardly any is new. The tail of a table is
// never read; zero keeps batches reproducible.
void BatchBuilder::list_pages(int64_t s, const SequenceCache& sequence) {
  int32_t* const table = host_.as<int32_t>() + pages_at_ + s * max_pages_;
  const std::span<const int32_t> held = sequence.pages();
  const int64_t n = std::min(std::ssize(held), max_pages_);
  Listed& there = listed_[static_cast<size_t>(s)];
  const int64_t same = there.list == sequence.page_list() ? there.pages : 0;
  std::copy(held.begin() + same, held.begin() + n, table + same);
  if (n < there.pages) std::fill(table + n, table + there.pages, 0);
  there = {sequence.page_list(), n};
}

Result<ForwardBatch> BatchBuilder::build(std::span<const SequenceRows> sequences) {
  DSV4_ASSIGN(const Size size, check(sequences));
  for (size_t s = 0; s < sequences.size(); ++s) {
    const Status reserved = sequences[s].cache->reserve(std::ssize(sequences[s].tokens));
    if (!reserved.ok()) {
      for (size_t undo = 0; undo < s; ++undo) sequences[undo].cache->unreserve();
      return reserved;
    }
  }

  const Layout at(size);
  begin_ = pages_at_ - at.end;
  end_ = pages_at_ + size.sequences * max_pages_;
  int32_t* const host = host_.as<int32_t>() + begin_;
  SampleRow* const samples = reinterpret_cast<SampleRow*>(host + at.samples);
  int64_t row = 0, logit_rows = 0;
  const auto i32 = [](int64_t n) { return static_cast<int32_t>(n); };
  for (int64_t s = 0; s < size.sequences; ++s) {
    const SequenceRows& seq = sequences[static_cast<size_t>(s)];
    const int64_t n = std::ssize(seq.tokens), first = seq.cache->length();
    host[at.seq_begin + s] = i32(row);
    host[at.seq_slot + s] = i32(seq.cache->slot());
    list_pages(s, *seq.cache);
    std::copy(seq.tokens.begin(), seq.tokens.end(), host + at.tokens + row);
    for (int64_t i = 0; i < n; ++i) {
      host[at.positions + row + i] = i32(first + i);
      host[at.row_seq + row + i] = i32(s);
      const bool wanted =
          seq.logits == LogitRows::kAll || (seq.logits == LogitRows::kLast && i == n - 1);
      if (!wanted) continue;
      samples[logit_rows] = seq.samples() ? seq.sample : SampleRow{};
      host[at.logit_rows + logit_rows++] = i32(row + i);
    }
    row += n;
  }
  host[at.seq_begin + size.sequences] = i32(row);

  const int32_t* const d = device_.as<const int32_t>() + begin_;
  ForwardBatch batch;
  batch.view = {.rows = size.rows,
                .sequences = size.sequences,
                .tokens = d + at.tokens,
                .positions = d + at.positions,
                .row_seq = d + at.row_seq,
                .seq_begin = d + at.seq_begin,
                .seq_slot = d + at.seq_slot,
                .seq_pages = device_.as<const int32_t>() + pages_at_,
                .max_pages = max_pages_};
  batch.logit_rows = d + at.logit_rows;
  batch.samples = reinterpret_cast<const SampleRow*>(d + at.samples);
  batch.R = size.logit_rows;
  return batch;
}

Status BatchBuilder::upload(Backend& backend, Stream& stream) const {
  return backend.upload(stream, device_.as<int32_t>() + begin_, host_.as<int32_t>() + begin_,
                        static_cast<size_t>(end_ - begin_) * sizeof(int32_t));
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
