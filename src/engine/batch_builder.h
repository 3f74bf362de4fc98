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

  // Checks everything, reserves every sequence's rows and writes the batch's arrays on the host; the
  // batch that comes back points to where upload() will put them. On an error no sequence has changed.
  // The arrays of the batch before must have been uploaded by then, not only been asked to be: a copy
  // reads them when the stream comes to it.
  Result<ForwardBatch> build(std::span<const SequenceRows> sequences);
  // One copy. Its place and size depend on the numbers of rows, of sequences and of rows of logits
  // alone, so it may be part of a recorded step.
  Status upload(Backend& backend, Stream& stream) const;

  const BatchLimits& limits() const { return limits_; }

 private:
  struct Size {
    int64_t rows = 0, sequences = 0, logit_rows = 0;
  };
  // Where each array begins, in int32 units: arrays of a batch's size end where the page tables begin,
  // which stay where they are. So one copy has all of both, and no more.
  struct Layout {
    explicit Layout(const Size& size);
    int64_t tokens, positions, row_seq, seq_begin, seq_slot, logit_rows, samples, end;
  };

  BatchBuilder(const BatchLimits& limits, int64_t span);
  static int64_t pages_per_sequence(const BatchLimits& limits, int64_t span);
  Result<Size> check(std::span<const SequenceRows> sequences);
  void list_pages(int64_t s, const SequenceCache& sequence);

  BatchLimits limits_;
  int64_t max_pages_ = 0;  // of one sequence
  int64_t pages_at_ = 0;   // where the page tables [max_sequences, max_pages] begin
  int64_t begin_ = 0, end_ = 0;  // of what the last build() wrote
  int64_t vocab_size_ = 0;
  const KvCache* cache_ = nullptr;
  std::vector<int32_t> sequence_in_slot_;  // of the batch being checked; -1: none
  struct Listed {
    uint64_t list = 0;  // SequenceCache::page_list()
    int64_t pages = 0;  // zeros behind them
  };
  std::vector<Listed> listed_;  // what each page table holds
  Buffer host_;  // what is uploaded
  Buffer device_;
};

}  // namespace dsv4
