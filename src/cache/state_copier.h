// StateCopier: moves what sequences keep between the backend's memory and host memory, byte for
// byte: pages, and snapshots. A snapshot of a sequence at length L is everything besides whole
// pages that queries at L and later read: the ring's last W rows, the rows of unfinished compressor
// windows (see kv_cache.h), and of the page that L ends in the entries that exist.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "dsv4/status.h"
#include "ops/backend.h"

namespace dsv4 {

using HostBytes = std::vector<char>;

class StateCopier {
 public:
  // `spec` is the one that `cache` was made from; cache and backend must outlive the copier. It
  // works on a stream of its own and waits for it: not during a step.
  static Result<std::unique_ptr<StateCopier>> make(const CacheSpec& spec, const KvCache& cache,
                                                   Backend& backend);

  size_t page_bytes() const { return page_bytes_; }
  size_t snapshot_bytes(int64_t length) const;

  Result<HostBytes> save_page(int32_t page);
  Status load_page(int32_t page, std::span<const char> bytes);
  // At a length > 0 that the sequence holds.
  Result<HostBytes> save_snapshot(const SequenceCache& seq, int64_t length);
  // Into a sequence that adopted `length` tokens.
  Status load_snapshot(const SequenceCache& seq, int64_t length, std::span<const char> bytes);

 private:
  // One contiguous run of rows in the backend's memory.
  struct Piece {
    char* data = nullptr;
    size_t bytes = 0;
  };
  StateCopier(const CacheSpec& spec, const KvCache& cache, Backend& backend,
              std::unique_ptr<Stream> stream);
  void add_ring(std::vector<Piece>& pieces, char* data, int64_t rows, int64_t row_bytes,
                int64_t slot, int64_t first, int64_t end) const;
  void add_tail(std::vector<Piece>& pieces, const CompressorSpec& spec, const TailView& tail,
                int64_t slot, int64_t length) const;
  std::vector<Piece> page_pieces(int32_t page) const;
  std::vector<Piece> snapshot_pieces(int64_t slot, int64_t length, int32_t last_page) const;
  Result<HostBytes> download(std::span<const Piece> pieces);
  Status upload(std::span<const Piece> pieces, std::span<const char> bytes);

  const CacheSpec spec_;
  const KvCache& cache_;
  Backend& backend_;
  std::unique_ptr<Stream> stream_;
  size_t page_bytes_ = 0;
};

}  // namespace dsv4
