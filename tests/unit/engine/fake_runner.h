// A "model" that costs nothing and forgets nothing: its state at a position is a hash of every
// token up to there, and it keeps that state where a real model keeps its rows, in ring, tails and
// pages of the KvCache. Its logits mix everything that a real one would read, so a sequence whose
// memory was mixed up, lost or overwritten answers differently than alone.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <vector>

#include "cache/kv_cache.h"
#include "engine/runner.h"
#include "ops/sampling.h"

namespace dsv4::testing {

inline CacheSpec fake_spec() {
  CacheSpec spec;
  spec.span = 16;
  LayerCacheSpec swa{.window = 6, .head_dim = 8, .rope_dim = 2};
  LayerCacheSpec csa = swa;
  csa.entries = {.ratio = 4, .overlap = true, .dim = 8};
  csa.keys = {.ratio = 4, .overlap = true, .dim = 4};
  LayerCacheSpec hca = swa;
  hca.entries = {.ratio = 16, .overlap = false, .dim = 8};
  spec.layers = {swa, csa, hca};
  return spec;
}

class FakeRunner : public StepRunner {
 public:
  static constexpr int64_t kVocab = 48;

  FakeRunner(const CacheSpec& spec, KvCache& cache, BatchLimits limits)
      : spec_(spec), cache_(cache), limits_(limits) {}

  Result<StepResult> run(std::span<const SequenceRows> sequences, bool* launched) override {
    if (launched) *launched = true;
    int64_t rows = 0, logit_rows = 0;
    logits_.clear();
    tokens_.clear();
    for (const SequenceRows& s : sequences) {
      DSV4_TRY(s.cache->reserve(std::ssize(s.tokens)));
      rows += std::ssize(s.tokens);
    }
    for (const SequenceRows& s : sequences) {
      for (int64_t i = 0; i < std::ssize(s.tokens); ++i) {
        const uint64_t seen =
            run_row(*s.cache, s.cache->length() + i, s.tokens[static_cast<size_t>(i)]);
        const bool wanted = s.logits == LogitRows::kAll ||
                            (s.logits == LogitRows::kLast && i + 1 == std::ssize(s.tokens));
        if (!wanted) continue;
        ++logit_rows;
        for (uint64_t v = 0; v < kVocab; ++v) {
          logits_.push_back(static_cast<float>(mix(seen, v) % 4096) / 1024.0f);
        }
        tokens_.push_back(s.samples() ? sample_last(s.sample) : kNoToken);
      }
    }
    most_rows = std::max(most_rows, rows);
    within_limits = within_limits && rows <= limits_.max_rows && rows > 0 &&
                    logit_rows <= limits_.max_logit_rows &&
                    std::ssize(sequences) <= limits_.max_sequences;
    on_run(rows);
    return StepResult{{.data = logits_.data(), .rows = logit_rows, .vocab = kVocab}, tokens_};
  }

  std::function<void(int64_t rows)> on_run = [](int64_t) {};
  int64_t most_rows = 0;
  bool within_limits = true;

 private:
  // Whoever gets a token has no use for the logits, and does not get them.
  int32_t sample_last(const SampleRow& row) {
    const std::span<float> logits = std::span(logits_).last(kVocab);
    std::array<uint64_t, kVocab> scratch;
    const int32_t token = sample_token(logits, scan_logits(logits).largest, row, scratch);
    std::fill(logits.begin(), logits.end(), std::numeric_limits<float>::quiet_NaN());
    return token;
  }
  static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t x = a * 0x9E3779B97F4A7C15u + b + 0x632BE59BD9B4E019u;
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93u;
    return x ^ (x >> 29);
  }
  static uint64_t read(const void* at) {
    uint64_t v = 0;
    std::memcpy(&v, at, sizeof v);
    return v;
  }
  static void write(void* at, uint64_t v) { std::memcpy(at, &v, sizeof v); }

  static char* ring_row(const LayerCacheView& v, const SequenceCache& seq, int64_t p) {
    return v.ring.data + (seq.slot() * v.ring.rows + p % v.ring.rows) * v.ring.row_bytes;
  }
  // Both halves of a tail carry the same state.
  static char* tail_row(float* half, const TailView& t, const SequenceCache& seq, int64_t p) {
    return reinterpret_cast<char*>(half + (seq.slot() * t.rows + p % t.rows) * t.columns);
  }
  static char* entry_row(const PagedView& v, const SequenceCache& seq, int64_t i) {
    const int64_t page = seq.pages()[static_cast<size_t>(i / v.per_page)];
    return v.data + (page * v.per_page + i % v.per_page) * v.row_bytes;
  }

  uint64_t compress(const CompressorSpec& c, const TailView& tail, const PagedView& out,
                    const SequenceCache& seq, int64_t p, uint64_t state) {
    if (c.ratio == 0) return 0;
    write(tail_row(tail.c, tail, seq, p), state);
    write(tail_row(tail.s, tail, seq, p), ~state);
    uint64_t seen = 0;
    if ((p + 1) % c.ratio == 0) {
      const int64_t i = p / c.ratio;
      uint64_t pooled = static_cast<uint64_t>(i);
      for (int64_t at = std::max<int64_t>(0, (c.overlap ? i - 1 : i) * c.ratio); at <= p; ++at) {
        pooled = mix(pooled, read(tail_row(tail.c, tail, seq, at)) ^
                                 (3 * read(tail_row(tail.s, tail, seq, at))));
      }
      write(entry_row(out, seq, i), pooled);
    }
    for (int64_t i = 0; (i + 1) * c.ratio <= p + 1; ++i)
      seen = mix(seen, read(entry_row(out, seq, i)));
    return seen;
  }

  uint64_t run_row(const SequenceCache& seq, int64_t p, int32_t token) {
    uint64_t seen = 0;
    for (size_t layer = 0; layer < spec_.layers.size(); ++layer) {
      const LayerCacheSpec& spec = spec_.layers[layer];
      const LayerCacheView& view = cache_.layers()[layer];
      const uint64_t before = p == 0 ? layer + 1 : read(ring_row(view, seq, p - 1));
      const uint64_t state = mix(before, static_cast<uint64_t>(token));
      write(ring_row(view, seq, p), state);
      for (int64_t at = std::max<int64_t>(0, p - spec.window + 1); at <= p; ++at) {
        seen = mix(seen, read(ring_row(view, seq, at)));
      }
      seen = mix(seen, compress(spec.entries, view.tail, view.entries, seq, p, state));
      seen = mix(seen, compress(spec.keys, view.key_tail, view.keys, seq, p, state));
    }
    return seen;
  }

  const CacheSpec spec_;
  KvCache& cache_;
  const BatchLimits limits_;
  std::vector<float> logits_;
  std::vector<int32_t> tokens_;
};

}  // namespace dsv4::testing
