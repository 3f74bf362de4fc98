#include "cache/kv_cache.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <utility>

#include "base/str.h"

namespace dsv4 {
namespace {

// The view fields of one region that was just allocated.
void bind_region(const RegionPlan& r, const Buffer& buffer, const LayerCacheSpec& spec,
                 KvFormat format, LayerCacheView& view) {
  switch (r.kind) {
    case RegionKind::kRing:
      view.ring = {
          .data = buffer.as<char>(), .rows = r.rows, .row_bytes = r.row_bytes, .format = format};
      break;
    case RegionKind::kTailC:
      view.tail.c = buffer.as<float>();
      view.tail.rows = r.rows;
      view.tail.columns = spec.entries.columns();
      break;
    case RegionKind::kTailS:
      view.tail.s = buffer.as<float>();
      break;
    case RegionKind::kEntries:
      view.entries = {.data = buffer.as<char>(),
                      .per_page = r.rows,
                      .row_bytes = r.row_bytes,
                      .format = format};
      break;
    case RegionKind::kKeyTailC:
      view.key_tail.c = buffer.as<float>();
      view.key_tail.rows = r.rows;
      view.key_tail.columns = spec.keys.columns();
      break;
    case RegionKind::kKeyTailS:
      view.key_tail.s = buffer.as<float>();
      break;
    case RegionKind::kKeys:
      view.keys = {.data = buffer.as<char>(),
                   .per_page = r.rows,
                   .row_bytes = r.row_bytes,
                   .format = KvFormat::kBf16};
      break;
  }
}

}  // namespace

SequenceCache::SequenceCache(SequenceCache&& o) noexcept
    : cache_(std::exchange(o.cache_, nullptr)), slot_(std::exchange(o.slot_, -1)) {}

SequenceCache& SequenceCache::operator=(SequenceCache&& o) noexcept {
  if (this != &o) {
    free();
    cache_ = std::exchange(o.cache_, nullptr);
    slot_ = std::exchange(o.slot_, -1);
  }
  return *this;
}

int64_t SequenceCache::length() const {
  return cache_ ? cache_->slot(slot_).length : 0;
}
int64_t SequenceCache::reserved() const {
  return cache_ ? cache_->slot(slot_).reserved : 0;
}

bool SequenceCache::holds(int64_t length) const {
  if (!cache_) return false;
  const KvCache::Slot& s = cache_->slot(slot_);
  return length >= s.floor && length <= s.length && s.written - length <= cache_->max_rollback();
}

std::span<const int32_t> SequenceCache::pages() const {
  if (!cache_) return {};
  return cache_->slot(slot_).pages;
}

uint64_t SequenceCache::page_list() const {
  return cache_ ? cache_->slot(slot_).page_list : 0;
}

Status SequenceCache::reserve(int64_t n) {
  assert(cache_ && "reserve on an empty handle");
  KvCache::Slot& s = cache_->slot(slot_);
  if (n < 0 || n > std::numeric_limits<int32_t>::max() - s.length) {
    return Status(Code::kInvalidArgument, cat("cache: reserve ", n, " rows behind ", s.length,
                                              ": expected n >= 0 and positions below 2^31"));
  }
  const int64_t missing = cache_->pages_for(s.length + n) - static_cast<int64_t>(s.pages.size());
  if (missing > 0) DSV4_TRY(cache_->take_pages(missing, s.pages));
  s.reserved = n;
  return {};
}

void SequenceCache::unreserve() {
  if (cache_) cache_->slot(slot_).reserved = 0;
}

Status SequenceCache::commit(int64_t n) {
  assert(cache_ && "commit on an empty handle");
  KvCache::Slot& s = cache_->slot(slot_);
  if (n < 0 || n > s.reserved) {
    return Status(Code::kInternal, cat("cache: commit ", n, " of ", s.reserved, " reserved rows"));
  }
  const int64_t written = std::max(s.written, s.length + s.reserved);
  const int64_t length = s.length + n;
  if (n < s.reserved && written - length > cache_->max_rollback() && length > 0) {
    return Status(Code::kInvalidArgument,
                  cat("cache: commit ", n, " of ", s.reserved, " written rows would take back ",
                      written - length, ", at most ", cache_->max_rollback(), " can be"));
  }
  s.written = length == 0 ? 0 : written;
  s.length = length;
  s.reserved = 0;
  return {};
}

Status SequenceCache::rollback(int64_t n) {
  assert(cache_ && "rollback on an empty handle");
  KvCache::Slot& s = cache_->slot(slot_);
  if (n < 0 || n > s.length) {
    return Status(Code::kInvalidArgument, cat("cache: roll back ", n, " of ", s.length, " tokens"));
  }
  const int64_t length = s.length - n;
  if (n > 0 && length < s.floor) {
    return Status(Code::kInvalidArgument,
                  cat("cache: roll back ", n, " tokens: what lies before position ", s.floor,
                      " is shared or restored; run the sequence again from its start"));
  }
  // Length 0 needs no row at all, so it is always within reach.
  if (n > 0 && length > 0 && s.written - length > cache_->max_rollback()) {
    return Status(Code::kInvalidArgument,
                  cat("cache: roll back ", n, " tokens: position ", length, " is ",
                      s.written - length, " rows behind the last one written, at most ",
                      cache_->max_rollback(), " are kept; run the sequence again from its start"));
  }
  s.length = length;
  s.reserved = 0;
  if (length == 0) s.written = 0;
  return {};
}

Status SequenceCache::adopt(std::span<const int32_t> pages, int64_t length) {
  assert(cache_ && "adopt on an empty handle");
  KvCache::Slot& s = cache_->slot(slot_);
  const auto whole = static_cast<int64_t>(pages.size()) * cache_->span();
  if (!s.pages.empty() || length < whole || length >= whole + cache_->span()) {
    return Status(Code::kInternal, cat("cache: adopt ", pages.size(), " pages for ", length,
                                       " tokens into a sequence with ", s.pages.size(), " pages"));
  }
  for (const int32_t page : pages) {
    const Status used = cache_->pages_.use(page);
    if (!used.ok()) {
      clear();
      return used;
    }
    s.pages.push_back(page);
  }
  if (length > whole) {
    const Status taken = cache_->take_pages(1, s.pages);
    if (!taken.ok()) {
      clear();
      return taken;
    }
  }
  s.length = s.written = s.floor = length;
  return {};
}

void SequenceCache::freeze(int64_t n) {
  KvCache::Slot& s = cache_->slot(slot_);
  assert(n * cache_->span() <= s.length);
  s.floor = std::max(s.floor, n * cache_->span());
}

void SequenceCache::clear() {
  if (!cache_) return;
  KvCache::Slot& s = cache_->slot(slot_);
  const Status status = cache_->pages_.give_back(s.pages);
  assert(status.ok());
  (void)status;
  s.pages.clear();
  s.page_list = ++cache_->last_page_list_;
  s.length = s.reserved = s.written = s.floor = 0;
}

void SequenceCache::free() {
  if (!cache_) return;
  clear();
  cache_->slot(slot_).open = false;
  cache_->free_slots_.push_back(static_cast<int32_t>(slot_));
  cache_ = nullptr;
  slot_ = -1;
}

KvCache::KvCache(CachePlan plan, std::vector<Buffer> buffers, std::vector<LayerCacheView> layers)
    : plan_(std::move(plan)),
      buffers_(std::move(buffers)),
      layers_(std::move(layers)),
      pages_(plan_.pages),
      slots_(static_cast<size_t>(plan_.slots)) {
  free_slots_.reserve(slots_.size());
  for (int64_t i = plan_.slots - 1; i >= 0; --i) free_slots_.push_back(static_cast<int32_t>(i));
}

Result<std::unique_ptr<KvCache>> KvCache::make(const CacheSpec& spec, const CacheLimits& limits,
                                               Backend& backend) {
  DSV4_ASSIGN(CachePlan plan, plan_cache(spec, backend.kv_format(), limits));
  std::vector<Buffer> buffers;
  std::vector<LayerCacheView> layers(spec.layers.size());
  buffers.reserve(plan.regions.size());
  for (const RegionPlan& r : plan.regions) {
    auto buffer = backend.allocate(r.bytes);
    if (!buffer.ok()) {
      return buffer.status().with_context(cat("cache: ", region_name(r.kind), " of layer ", r.layer,
                                              ", ", r.bytes, " of ", plan.bytes, " bytes in all"));
    }
    const auto layer = static_cast<size_t>(r.layer);
    bind_region(r, *buffer, spec.layers[layer], backend.kv_format(), layers[layer]);
    buffers.push_back(std::move(buffer).value());
  }
  return std::unique_ptr<KvCache>(
      new KvCache(std::move(plan), std::move(buffers), std::move(layers)));
}

Result<SequenceCache> KvCache::open() {
  if (free_slots_.empty()) {
    return Status(Code::kResourceExhausted, cat("cache: all ", plan_.slots,
                                                " sequence slots are taken; allow more sequences"));
  }
  const int64_t i = free_slots_.back();
  free_slots_.pop_back();
  slot(i).open = true;
  slot(i).page_list = ++last_page_list_;
  return SequenceCache(this, i);
}

Status KvCache::take_pages(int64_t n, std::vector<int32_t>& pages) {
  if (n > pages_.available() && reclaim_) reclaim_(n);
  return pages_.take(n, pages);
}

Result<int32_t> KvCache::take_page() {
  std::vector<int32_t> page;
  DSV4_TRY(take_pages(1, page));
  return page[0];
}

Status KvCache::check() const {
  DSV4_TRY(pages_.check());
  std::vector<int64_t> users(static_cast<size_t>(total_pages()), 0);
  int64_t open_slots = 0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& s = slots_[i];
    if (s.open) ++open_slots;
    if (!s.open && !s.pages.empty()) {
      return Status(Code::kInternal, cat("cache: free slot ", i, " holds pages"));
    }
    if (s.length > s.written || s.floor > s.length ||
        s.length + s.reserved > plan_.span * static_cast<int64_t>(s.pages.size())) {
      return Status(Code::kInternal, cat("cache: slot ", i, ": length ", s.length, ", reserved ",
                                         s.reserved, ", written ", s.written, ", floor ", s.floor,
                                         ", ", s.pages.size(), " pages do not fit together"));
    }
    for (size_t at = 0; at < s.pages.size(); ++at) {
      const int32_t page = s.pages[at];
      ++users[static_cast<size_t>(page)];
      // A page that this slot may still write has no other user and no keeper.
      const bool frozen = static_cast<int64_t>(at + 1) * plan_.span <= s.floor;
      if (!frozen && (pages_.users(page) != 1 || pages_.kept(page))) {
        return Status(Code::kInternal, cat("cache: page ", page, " of slot ", i,
                                           " is free, kept or used by two, but may be written"));
      }
    }
  }
  for (int32_t page = 0; page < total_pages(); ++page) {
    if (users[static_cast<size_t>(page)] != pages_.users(page)) {
      return Status(Code::kInternal,
                    cat("cache: page ", page, " has ", pages_.users(page), " users, ",
                        users[static_cast<size_t>(page)], " sequences hold it"));
    }
  }
  if (open_slots + free_slots() != static_cast<int64_t>(slots_.size())) {
    return Status(Code::kInternal, cat("cache: ", open_slots, " open + ", free_slots(), " free of ",
                                       slots_.size(), " slots: one is lost"));
  }
  return {};
}

}  // namespace dsv4
