// BatchBuilder: lists of (sequence, tokens) -> the ForwardBatch that ops read, in memory allocated
// once. Several sequences, prefill chunks and decode rows mixed.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "cache/kv_cache.h"
#include "dsv4/status.h"
#include "model/forward.h"
#include "ops/args/sample.h"
#include "ops/backend.h"

namespace dsv4 {

enum class LogitRows : uint8_t { kNone, kLast, kAll };

// Rows to run behind what `cache` holds: row i at position cache->length() + i.
struct SequenceRows {
  SequenceCache* cache = nullptr;
  std::span<const int32_t> tokens;
  LogitRows logits = LogitRows::kLast;
  // How the last row becomes a token, where `logits` is kLast.
  SampleRow sample = {};

  bool samples() const { return logits == LogitRows::kLast && sample.kind != SampleKind::kNone; }
  int64_t logit_rows() const {
    return logits == LogitRows::kAll ? std::ssize(tokens) : logits == LogitRows::kLast ? 1 : 0;
  }
};

struct BatchLimits {
  int64_t max_rows = 0;        // T of one batch
  int64_t max_sequences = 1;   // S of one batch
  int64_t max_logit_rows = 0;  // R of one batch
  int64_t context = 0;         // longest sequence
};

// Every id must be a row of the embedding; names the first that is not.
Status check_tokens(std::span<const int32_t> tokens, int64_t vocab_size);

class BatchBuilder {
 public:
  static Result<BatchBuilder> make(const BatchLimits& limits, int64_t vocab_size,
                                   const KvCache& cache, Backend& backend);
  static size_t device_bytes(const BatchLimits& limits, int64_t span);

  // Checks everything, reserves every sequence's rows, uploads. On an error no sequence has
  // changed. The batch is valid until the next build.
  Result<ForwardBatch> build(std::span<const SequenceRows> sequences, Backend& backend,
                             Stream& stream);

  const BatchLimits& limits() const { return limits_; }

 private:
  // Where each array begins, in int32 units; the same for every batch.
  struct Layout {
    Layout(const BatchLimits& limits, int64_t span);
    int64_t tokens, positions, row_seq, seq_begin, seq_slot, logit_rows, samples, seq_pages, end;
    int64_t max_pages;
  };

  BatchBuilder(const BatchLimits& limits, const Layout& layout)
      : limits_(limits), layout_(layout) {}
  Status check(std::span<const SequenceRows> sequences);

  BatchLimits limits_;
  Layout layout_;
  int64_t vocab_size_ = 0;
  const KvCache* cache_ = nullptr;
  std::vector<int32_t> sequence_in_slot_;  // of the batch being checked; -1: none
  Buffer host_;  // what is uploaded
  Buffer device_;
};

}  // namespace dsv4
