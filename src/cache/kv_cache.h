// KvCache: the memory of all sequences and who owns which part of it. Host bookkeeping only; the
// rows themselves are written and read by ops through the LayerCacheViews.
//
// What is held. Ops write rows by position: ring row p at p % R with R = W + B rows (W window, B =
// max_rollback), tail row p at p % N with N = w + B (w = m, or 2m for a compressor with overlap).
// Let H be one past the highest position ever written in this slot, L the committed length <= H.
// Row p < L is intact iff no position p + k*R, k > 0, was written, and p >= H - R guarantees that.
// (Positions below p written later than p imply a rollback below p, after which p is written anew.)
//   ring: queries at >= L read positions >= L - W + 1 of it; intact iff L - W + 1 >= H - W - B.
//   tail: entries finished at >= L start no earlier than m*floor(L/m) >= L - m + 1, with overlap
//   one
//         window earlier, >= L - 2m + 1; in both cases L - w + 1; intact iff L - w + 1 >= H - w -
//         B.
// Both hold iff H - L <= B + 1, so H - L <= B is the condition for a rollback: it is only a smaller
// length. Rows at >= L are written again before they are read, since queries read positions up to
// their own. Entry i of a paged region is read by queries p with (i+1)*m <= p + 1 only, so an entry
// finished by a row that was taken back is overwritten before it becomes visible again.
// Pages may be shared: those of whole spans that lie behind the length, read-only from then on. A
// sequence that begins with restored rows (adopt) has no more than a window of them. Both raise the
// slot's floor, below which no rollback goes.
// A slot taken by a new sequence starts at L = H = 0: no view reads a position below 0 or at or
// above the length plus the rows of the running batch, so what the previous owner left is never
// seen.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/buffer.h"
#include "cache/cache_plan.h"
#include "cache/page_allocator.h"
#include "dsv4/status.h"
#include "ops/backend.h"
#include "ops/cache_view.h"

namespace dsv4 {

class KvCache;

// One sequence's part of the cache: a handle that gives slot and pages back when it goes.
// reserve(n) -> run n rows -> commit(k <= n); the rows not committed were drafts.
class SequenceCache {
 public:
  SequenceCache() = default;
  SequenceCache(SequenceCache&& o) noexcept;
  SequenceCache& operator=(SequenceCache&& o) noexcept;
  SequenceCache(const SequenceCache&) = delete;
  SequenceCache& operator=(const SequenceCache&) = delete;
  ~SequenceCache() { free(); }

  explicit operator bool() const { return cache_ != nullptr; }
  const KvCache* cache() const { return cache_; }
  int64_t slot() const { return slot_; }
  int64_t length() const;    // committed tokens
  int64_t reserved() const;  // rows that may be written behind them
  // Whether queries at `length` could go on from here: it is not more than max_rollback rows behind
  // what was written, and not before what was restored or shared.
  bool holds(int64_t length) const;
  std::span<const int32_t> pages() const;
  // Names the list that pages() is the beginning of: another one after clear(). Not 0 for an open sequence.
  uint64_t page_list() const;

  // Room for n rows at positions length() .. length()+n-1; replaces an earlier reservation. On
  // kResourceExhausted nothing has changed.
  Status reserve(int64_t n);
  // Takes a reservation back of which nothing was written.
  void unreserve();
  // All reserved rows were written and the first n of them stay.
  Status commit(int64_t n);
  // Takes the last n tokens back. Pages stay with the sequence.
  Status rollback(int64_t n);

  // For an empty sequence: begins with `pages` of whole spans, which others may use too, and a page
  // of its own for what `length` has beyond them. Nothing of ring and tails is there yet; the
  // caller writes them, and that page, before the next batch. On an error the sequence is empty.
  Status adopt(std::span<const int32_t> pages, int64_t length);
  // The first n pages, all behind length(), will not be written any more.
  void freeze(int64_t n);
  // As new: length 0, pages given back, the slot stays.
  void clear();
  // Gives everything back; the handle is empty afterwards.
  void free();

 private:
  friend class KvCache;
  SequenceCache(KvCache* cache, int64_t slot) : cache_(cache), slot_(slot) {}

  KvCache* cache_ = nullptr;
  int64_t slot_ = -1;
};

// Must outlive its SequenceCaches and stay where it is.
class KvCache {
 public:
  static Result<std::unique_ptr<KvCache>> make(const CacheSpec& spec, const CacheLimits& limits,
                                               Backend& backend);
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  const CachePlan& plan() const { return plan_; }
  std::span<const LayerCacheView> layers() const { return layers_; }
  int64_t span() const { return plan_.span; }
  int64_t max_rollback() const { return plan_.max_rollback; }
  // Places for sequences, free or open: SequenceCache::slot() is below it.
  int64_t slots() const { return static_cast<int64_t>(slots_.size()); }
  int64_t free_slots() const { return static_cast<int64_t>(free_slots_.size()); }
  int64_t free_pages() const { return pages_.available(); }
  int64_t total_pages() const { return pages_.total(); }
  // Kept by the prefix index alone: free as soon as it lets them go.
  int64_t idle_pages() const { return pages_.idle(); }
  // Pages that a sequence of n tokens holds.
  int64_t pages_for(int64_t tokens) const { return (tokens + plan_.span - 1) / plan_.span; }

  // A new, empty sequence; kResourceExhausted when all slots are taken.
  Result<SequenceCache> open();

  // The prefix index's side: pages that stay when their sequences go, until they are let go. When
  // fewer than n pages are free, `reclaim(n)` is asked to let some go.
  Status keep_page(int32_t page) { return pages_.keep(page); }
  Status let_page_go(int32_t page) { return pages_.let_go(page); }
  bool page_in_use(int32_t page) const { return pages_.users(page) > 0; }
  bool page_kept(int32_t page) const { return pages_.kept(page); }
  void set_reclaim(std::function<void(int64_t n)> reclaim) { reclaim_ = std::move(reclaim); }
  // One page with a user, which is the caller: to be put into a sequence by adopt and given back.
  Result<int32_t> take_page();
  Status give_page_back(int32_t page) { return pages_.give_back({&page, 1}); }

  // Integrity recount: every page is free, kept, or belongs to as many sequences as it has users;
  // every slot is free or open. A message names the first contradiction.
  Status check() const;

 private:
  friend class SequenceCache;

  struct Slot {
    bool open = false;
    int64_t length = 0;
    int64_t reserved = 0;
    int64_t written = 0;  // H: one past the highest position ever written
    int64_t floor = 0;    // no rollback below it
    std::vector<int32_t> pages;
    uint64_t page_list = 0;
  };

  KvCache(CachePlan plan, std::vector<Buffer> buffers, std::vector<LayerCacheView> layers);
  Slot& slot(int64_t i) { return slots_[static_cast<size_t>(i)]; }
  Status take_pages(int64_t n, std::vector<int32_t>& pages);

  CachePlan plan_;
  std::vector<Buffer> buffers_;  // one per region, in the order of the plan
  std::vector<LayerCacheView> layers_;
  PageAllocator pages_;
  std::function<void(int64_t)> reclaim_;
  std::vector<Slot> slots_;
  std::vector<int32_t> free_slots_;
  uint64_t last_page_list_ = 0;
};

}  // namespace dsv4
