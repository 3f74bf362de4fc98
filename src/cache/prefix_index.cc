#include "cache/prefix_index.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "base/str.h"

namespace dsv4 {
namespace {

uint64_t span_hash(std::span<const int32_t> tokens) {
  return Hasher().add(tokens).finish().a;
}

Hash128 item_key(Hash128 parent, std::span<const int32_t> tokens, bool is_page) {
  return Hasher(parent).add(tokens).add(&is_page, 1).finish();
}

int64_t common_length(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace

bool PrefixIndex::Before::operator()(const Item* a, const Item* b) const {
  return std::tuple(a->used, -a->length, a->is_page, a->key) <
         std::tuple(b->used, -b->length, b->is_page, b->key);
}

PrefixIndex::PrefixIndex(KvCache& cache, std::unique_ptr<StateCopier> copier, PrefixLimits limits,
                         std::unique_ptr<DiskStore> disk)
    : cache_(cache), copier_(std::move(copier)), limits_(limits), disk_(std::move(disk)) {
  cache_.set_reclaim([this](int64_t pages) { reclaim(pages); });
  if (disk_) load_disk();
}

PrefixIndex::~PrefixIndex() {
  cache_.set_reclaim(nullptr);
  for (const Item* item : device_.items) (void)cache_.let_page_go(item->page);
}

PrefixIndex::Node* PrefixIndex::child(const Node& node, std::span<const int32_t> span) {
  const auto [first, last] = node.children.equal_range(span_hash(span));
  for (auto it = first; it != last; ++it) {
    if (std::ranges::equal(it->second->item.tokens, span)) return it->second.get();
  }
  return nullptr;
}

PrefixIndex::Node& PrefixIndex::add_child(Node& node, std::span<const int32_t> span) {
  auto made = std::make_unique<Node>();
  Node& added = *made;
  added.parent = &node;
  added.item.node = &added;
  added.item.length = node.item.length + std::ssize(span);
  added.item.is_page = true;
  added.item.tokens.assign(span.begin(), span.end());
  added.item.key = item_key(node.item.key, span, true);
  node.children.emplace(span_hash(span), std::move(made));
  return added;
}

const PrefixIndex::Node& PrefixIndex::deepest(std::span<const int32_t> tokens) const {
  const Node* node = &root_;
  const auto span = static_cast<size_t>(cache_.span());
  for (size_t at = 0; at + span <= tokens.size(); at += span) {
    const Node* const next = child(*node, tokens.subspan(at, span));
    if (!next) break;
    node = next;
  }
  return *node;
}

PrefixIndex::Item* PrefixIndex::best_snapshot(const Node& last, std::span<const int32_t> tokens,
                                              int64_t most) {
  for (const Node* node = &last; node; node = node->parent) {
    const auto rest = tokens.subspan(static_cast<size_t>(node->item.length));
    Item* best = nullptr;
    for (const auto& snapshot : node->snapshots) {
      if (snapshot->length > most || (best && snapshot->length <= best->length)) continue;
      if (common_length(snapshot->tokens, rest) == std::ssize(snapshot->tokens)) {
        best = snapshot.get();
      }
    }
    if (best) return best;
  }
  return nullptr;
}

PrefixIndex::Match PrefixIndex::find(std::span<const int32_t> tokens, int64_t most) const {
  Match match;
  const Node& last = deepest(tokens);
  const auto rest = tokens.subspan(static_cast<size_t>(last.item.length));
  for (const auto& [hash, node] : last.children) {
    match.agreeing = std::max(match.agreeing, common_length(rest, node->item.tokens));
  }
  for (const auto& snapshot : last.snapshots) {
    match.agreeing = std::max(match.agreeing, common_length(rest, snapshot->tokens));
  }
  match.agreeing += last.item.length;
  const Item* const best = best_snapshot(last, tokens, most);
  if (!best) return match;
  match.length = best->length;
  for (const Node* node = best->node; node->parent; node = node->parent) {
    if (node->item.page >= 0 && cache_.page_in_use(node->item.page)) ++match.used_pages;
  }
  return match;
}

void PrefixIndex::set_used(Item& item, int64_t used) {
  for (Tier* tier : {&device_, &host_, &disk_tier_}) {
    const bool in = tier == &device_ ? item.page >= 0
                    : tier == &host_ ? item.host != nullptr
                                     : item.on_disk;
    if (in) tier->items.erase(&item);
  }
  item.used = used;
  if (item.page >= 0) device_.items.insert(&item);
  if (item.host) host_.items.insert(&item);
  if (item.on_disk) disk_tier_.items.insert(&item);
}

void PrefixIndex::touch(Item& item) {
  set_used(item, clock_);
  for (Node* node = item.node; node->parent; node = node->parent) set_used(node->item, clock_);
}

PrefixIndex::Restored PrefixIndex::restore_pages(Node& last, std::vector<int32_t>& pages,
                                                 std::vector<int32_t>& taken) {
  std::vector<Node*> chain;
  for (Node* node = &last; node->parent; node = node->parent) chain.push_back(node);
  for (auto it = chain.rbegin(); it != chain.rend(); ++it) {
    Item& item = (*it)->item;
    ++tier_of(item).page_hits;
    if (item.page < 0) {
      const auto bytes = bytes_of(item);
      if (!bytes.ok()) {
        drop(item);
        return Restored::kLost;
      }
      const auto page = cache_.take_page();
      if (!page.ok()) return Restored::kNoRoom;
      taken.push_back(*page);
      if (!copier_->load_page(*page, **bytes).ok()) return Restored::kNoRoom;
      if (!to_device(item, *page)) return Restored::kNoRoom;
      off_host(item);
    }
    if (item.on_disk) disk_->touch(item.key);
    pages.push_back(item.page);
  }
  return Restored::kYes;
}

PrefixIndex::Restored PrefixIndex::restore_at(Item& snapshot, SequenceCache& seq) {
  PrefixCacheStats::Tier& tier = tier_of(snapshot);
  const auto bytes = bytes_of(snapshot);
  if (!bytes.ok()) {
    drop(snapshot);
    return Restored::kLost;
  }
  std::vector<int32_t> pages, taken;
  Restored result = restore_pages(*snapshot.node, pages, taken);
  if (result == Restored::kYes) {
    // `snapshot` is still there: what was just used is not evicted.
    if (!seq.adopt(pages, snapshot.length).ok()) {
      result = Restored::kNoRoom;
    } else if (!copier_->load_snapshot(seq, snapshot.length, **bytes).ok()) {
      seq.clear();
      result = Restored::kNoRoom;
    } else {
      ++tier.snapshot_hits;
      if (snapshot.on_disk) disk_->touch(snapshot.key);
      if (!snapshot.host) to_host(snapshot, *bytes);
    }
  }
  for (const int32_t page : taken) (void)cache_.give_page_back(page);
  return result;
}

int64_t PrefixIndex::restore(std::span<const int32_t> tokens, int64_t most, SequenceCache& seq) {
  ++counts_.lookups;
  counts_.asked_tokens += std::ssize(tokens);
  Restored result = Restored::kLost;
  int64_t length = 0;
  while (result == Restored::kLost) {
    Item* const snapshot = best_snapshot(deepest(tokens), tokens, most);
    if (!snapshot) break;
    pinned_ = ++clock_;
    touch(*snapshot);
    length = snapshot->length;
    result = restore_at(*snapshot, seq);
    pinned_ = -1;
  }
  if (result != Restored::kYes) return 0;
  ++counts_.hits;
  counts_.reused_tokens += length;
  return length;
}

void PrefixIndex::store(std::span<const int32_t> tokens, SequenceCache& seq, int64_t length) {
  if (length <= 0 || !seq.holds(length)) return;
  pinned_ = ++clock_;
  const int64_t span = cache_.span();
  Node* node = &root_;
  for (int64_t i = 0; i < length / span; ++i) {
    const auto part = tokens.subspan(static_cast<size_t>(i * span), static_cast<size_t>(span));
    const int32_t page = seq.pages()[static_cast<size_t>(i)];
    Node* next = child(*node, part);
    const bool added = !next;
    if (added) next = &add_child(*node, part);
    node = next;
    Item& item = node->item;
    set_used(item, clock_);
    if (item.page >= 0) continue;
    seq.freeze(i + 1);
    if (!to_device(item, page)) {
      drop_if_lost(item);
      pinned_ = -1;
      return;
    }
    off_host(item);
    if (!added || !disk_) continue;
    if (auto bytes = copier_->save_page(page); bytes.ok()) {
      to_disk(item, std::make_shared<const HostBytes>(std::move(bytes).value()));
    }
  }
  store_snapshot(*node,
                 tokens.subspan(static_cast<size_t>(node->item.length),
                                static_cast<size_t>(length - node->item.length)),
                 seq, length);
  pinned_ = -1;
}

void PrefixIndex::store_snapshot(Node& node, std::span<const int32_t> rest,
                                 const SequenceCache& seq, int64_t length) {
  for (const auto& snapshot : node.snapshots) {
    if (std::ranges::equal(snapshot->tokens, rest)) return touch(*snapshot);
  }
  if (!disk_ && copier_->snapshot_bytes(length) > limits_.host_bytes) return;
  auto saved = copier_->save_snapshot(seq, length);
  if (!saved.ok()) return;
  const auto bytes = std::make_shared<const HostBytes>(std::move(saved).value());
  auto made = std::make_unique<Item>();
  Item& item = *made;
  item.node = &node;
  item.length = length;
  item.tokens.assign(rest.begin(), rest.end());
  item.key = item_key(node.item.key, rest, false);
  item.used = clock_;
  node.snapshots.push_back(std::move(made));
  to_host(item, bytes);
  to_disk(item, bytes);
  drop_if_lost(item);
}

}  // namespace dsv4
