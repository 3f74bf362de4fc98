#include "cache/state_copier.h"

#include <algorithm>

#include "base/str.h"

namespace dsv4 {
namespace {

template <class Pieces>
size_t total_bytes(const Pieces& pieces) {
  size_t bytes = 0;
  for (const auto& piece : pieces) bytes += piece.bytes;
  return bytes;
}

}  // namespace

StateCopier::StateCopier(const CacheSpec& spec, const KvCache& cache, Backend& backend,
                         std::unique_ptr<Stream> stream)
    : spec_(spec), cache_(cache), backend_(backend), stream_(std::move(stream)) {
  page_bytes_ = total_bytes(page_pieces(0));
}

Result<std::unique_ptr<StateCopier>> StateCopier::make(const CacheSpec& spec, const KvCache& cache,
                                                       Backend& backend) {
  DSV4_ASSIGN(auto stream, backend.make_stream());
  return std::unique_ptr<StateCopier>(new StateCopier(spec, cache, backend, std::move(stream)));
}

// Rows first .. end-1 of a region that stores position p at p % rows: one run, or two around the
// end.
void StateCopier::add_ring(std::vector<Piece>& pieces, char* data, int64_t rows, int64_t row_bytes,
                           int64_t slot, int64_t first, int64_t end) const {
  while (first < end) {
    const int64_t at = first % rows;
    const int64_t n = std::min(end - first, rows - at);
    pieces.push_back({.data = data + (slot * rows + at) * row_bytes,
                      .bytes = static_cast<size_t>(n * row_bytes)});
    first += n;
  }
}

void StateCopier::add_tail(std::vector<Piece>& pieces, const CompressorSpec& spec,
                           const TailView& tail, int64_t slot, int64_t length) const {
  if (spec.ratio == 0) return;
  // The first row that an entry finished at `length` or later pools.
  const int64_t window = length / spec.ratio * spec.ratio;
  const int64_t first = std::max<int64_t>(0, spec.overlap ? window - spec.ratio : window);
  const int64_t row_bytes = tail.columns * static_cast<int64_t>(sizeof(float));
  for (float* half : {tail.c, tail.s}) {
    add_ring(pieces, reinterpret_cast<char*>(half), tail.rows, row_bytes, slot, first, length);
  }
}

std::vector<StateCopier::Piece> StateCopier::page_pieces(int32_t page) const {
  std::vector<Piece> pieces;
  for (const LayerCacheView& layer : cache_.layers()) {
    for (const PagedView* view : {&layer.entries, &layer.keys}) {
      if (!view->data) continue;
      const int64_t bytes = view->per_page * view->row_bytes;
      pieces.push_back({.data = view->data + page * bytes, .bytes = static_cast<size_t>(bytes)});
    }
  }
  return pieces;
}

std::vector<StateCopier::Piece> StateCopier::snapshot_pieces(int64_t slot, int64_t length,
                                                             int32_t last_page) const {
  std::vector<Piece> pieces;
  const int64_t into_page = length % cache_.span();
  for (size_t i = 0; i < spec_.layers.size(); ++i) {
    const LayerCacheSpec& spec = spec_.layers[i];
    const LayerCacheView& view = cache_.layers()[i];
    add_ring(pieces, view.ring.data, view.ring.rows, view.ring.row_bytes, slot,
             std::max<int64_t>(0, length - spec.window), length);
    add_tail(pieces, spec.entries, view.tail, slot, length);
    add_tail(pieces, spec.keys, view.key_tail, slot, length);
    const auto add_entries = [&](const CompressorSpec& c, const PagedView& pages) {
      if (c.ratio == 0 || into_page < c.ratio) return;
      pieces.push_back({.data = pages.data + last_page * pages.per_page * pages.row_bytes,
                        .bytes = static_cast<size_t>(into_page / c.ratio * pages.row_bytes)});
    };
    add_entries(spec.entries, view.entries);
    add_entries(spec.keys, view.keys);
  }
  return pieces;
}

size_t StateCopier::snapshot_bytes(int64_t length) const {
  return total_bytes(snapshot_pieces(0, length, 0));
}

Result<HostBytes> StateCopier::download(std::span<const Piece> pieces) {
  HostBytes bytes(total_bytes(pieces));
  char* at = bytes.data();
  for (const Piece& piece : pieces) {
    DSV4_TRY(backend_.download(*stream_, at, piece.data, piece.bytes));
    at += piece.bytes;
  }
  DSV4_TRY(backend_.synchronize(*stream_));
  return bytes;
}

Status StateCopier::upload(std::span<const Piece> pieces, std::span<const char> bytes) {
  if (total_bytes(pieces) != bytes.size()) {
    return Status(Code::kInternal,
                  cat("cache: ", bytes.size(), " bytes saved, expected ", total_bytes(pieces)));
  }
  const char* at = bytes.data();
  for (const Piece& piece : pieces) {
    DSV4_TRY(backend_.upload(*stream_, piece.data, at, piece.bytes));
    at += piece.bytes;
  }
  return backend_.synchronize(*stream_);
}

Result<HostBytes> StateCopier::save_page(int32_t page) {
  return download(page_pieces(page));
}

Status StateCopier::load_page(int32_t page, std::span<const char> bytes) {
  return upload(page_pieces(page), bytes);
}

Result<HostBytes> StateCopier::save_snapshot(const SequenceCache& seq, int64_t length) {
  if (length <= 0 || !seq.holds(length)) {
    return Status(Code::kInternal, cat("cache: snapshot at ", length, " of a sequence of ",
                                       seq.length(), " tokens that does not hold it any more"));
  }
  const int64_t page = length / cache_.span();
  const int32_t last = page < std::ssize(seq.pages()) ? seq.pages()[static_cast<size_t>(page)] : 0;
  return download(snapshot_pieces(seq.slot(), length, last));
}

Status StateCopier::load_snapshot(const SequenceCache& seq, int64_t length,
                                  std::span<const char> bytes) {
  const int64_t page = length / cache_.span();
  const int32_t last = page < std::ssize(seq.pages()) ? seq.pages()[static_cast<size_t>(page)] : 0;
  return upload(snapshot_pieces(seq.slot(), length, last), bytes);
}

}  // namespace dsv4
