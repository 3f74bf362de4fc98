// The tiers of the prefix index: what is where, what has to go, and the recount of it all.
#include <algorithm>
#include <map>
#include <utility>

#include "base/str.h"
#include "cache/prefix_index.h"

namespace dsv4 {

size_t PrefixIndex::item_bytes(const Item& item) const {
  return item.is_page ? copier_->page_bytes() : copier_->snapshot_bytes(item.length);
}

DiskStore::Entry PrefixIndex::entry_of(const Item& item) const {
  const Node* const before = item.is_page ? item.node->parent : item.node;
  return {.kind = item.is_page ? DiskStore::Kind::kPage : DiskStore::Kind::kSnapshot,
          .key = item.key,
          .parent = before->item.key,
          .length = item.length,
          .tokens = item.tokens,
          .bytes = item_bytes(item)};
}

void PrefixIndex::enter(Tier& tier, Item& item, size_t bytes) {
  tier.items.insert(&item);
  tier.bytes += bytes;
  ++(item.is_page ? tier.pages : tier.snapshots);
}

void PrefixIndex::leave(Tier& tier, Item& item, size_t bytes) {
  tier.items.erase(&item);
  tier.bytes -= bytes;
  --(item.is_page ? tier.pages : tier.snapshots);
}

bool PrefixIndex::to_device(Item& item, int32_t page) {
  if (!cache_.keep_page(page).ok()) return false;
  item.page = page;
  enter(device_, item, copier_->page_bytes());
  return true;
}

void PrefixIndex::off_device(Item& item) {
  if (item.page < 0) return;
  leave(device_, item, copier_->page_bytes());
  (void)cache_.let_page_go(item.page);
  item.page = -1;
}

bool PrefixIndex::to_host(Item& item, SharedBytes bytes) {
  moving_ = &item;
  const bool room = make_host_room(bytes->size());
  moving_ = nullptr;
  if (!room) return false;
  const size_t size = bytes->size();
  item.host = std::move(bytes);
  enter(host_, item, size);
  return true;
}

void PrefixIndex::off_host(Item& item) {
  if (!item.host) return;
  leave(host_, item, item.host->size());
  item.host = nullptr;
}

void PrefixIndex::to_disk(Item& item, const SharedBytes& bytes) {
  if (!disk_ || item.on_disk) return;
  const DiskStore::Entry entry = entry_of(item);
  const size_t size = DiskStore::file_bytes(entry);
  if (size > limits_.disk_bytes || !disk_->put(entry, bytes)) return;
  item.on_disk = true;
  item.disk_bytes = size;
  enter(disk_tier_, item, size);
  moving_ = &item;
  make_disk_room();
  moving_ = nullptr;
}

void PrefixIndex::off_disk(Item& item) {
  if (!item.on_disk) return;
  leave(disk_tier_, item, item.disk_bytes);
  item.on_disk = false;
  disk_->remove(item.key);
}

bool PrefixIndex::evictable(const Item& item) const {
  if (item.used == pinned_ || &item == moving_) return false;
  if (!moving_ || !item.is_page) return true;
  for (const Node* node = moving_->node; node; node = node->parent) {
    if (node == item.node) return false;
  }
  return true;
}

PrefixIndex::Item* PrefixIndex::oldest(const Tier& tier) const {
  for (Item* item : tier.items) {
    if (evictable(*item) && (&tier != &device_ || !cache_.page_in_use(item->page))) return item;
  }
  return nullptr;
}

bool PrefixIndex::make_host_room(size_t bytes) {
  if (bytes > limits_.host_bytes) return false;
  while (host_.bytes + bytes > limits_.host_bytes) {
    Item* const item = oldest(host_);
    if (!item) return false;
    ++host_.evictions;
    off_host(*item);
    drop_if_lost(*item);
  }
  return true;
}

void PrefixIndex::make_disk_room() {
  while (disk_tier_.bytes > limits_.disk_bytes) {
    Item* const item = oldest(disk_tier_);
    if (!item) return;
    ++disk_tier_.evictions;
    off_disk(*item);
    drop_if_lost(*item);
  }
}

void PrefixIndex::reclaim(int64_t pages) {
  while (cache_.free_pages() < pages) {
    Item* const item = oldest(device_);
    if (!item) return;
    ++device_.evictions;
    if (!item->host && limits_.host_bytes >= copier_->page_bytes()) {
      if (auto bytes = copier_->save_page(item->page); bytes.ok()) {
        to_host(*item, std::make_shared<const HostBytes>(std::move(bytes).value()));
      }
    }
    off_device(*item);
    drop_if_lost(*item);
  }
}

void PrefixIndex::drop_if_lost(Item& item) {
  if (item.page < 0 && !item.host && !item.on_disk) drop(item);
}

void PrefixIndex::drop_below(Node& node) {
  for (auto& [hash, each] : node.children) {
    drop_below(*each);
    off_device(each->item);
    off_host(each->item);
    off_disk(each->item);
  }
  node.children.clear();
  for (auto& snapshot : node.snapshots) {
    off_host(*snapshot);
    off_disk(*snapshot);
  }
  node.snapshots.clear();
}

void PrefixIndex::drop(Item& item) {
  off_device(item);
  off_host(item);
  off_disk(item);
  Node& node = *item.node;
  if (!item.is_page) {
    std::erase_if(node.snapshots, [&](const auto& each) { return each.get() == &item; });
    return;
  }
  drop_below(node);
  auto& siblings = node.parent->children;
  const auto mine = std::find_if(siblings.begin(), siblings.end(),
                                 [&](const auto& each) { return each.second.get() == &node; });
  siblings.erase(mine);
}

PrefixCacheStats::Tier& PrefixIndex::tier_of(const Item& item) {
  return item.page >= 0 ? counts_.device : item.host ? counts_.host : counts_.disk;
}

Result<SharedBytes> PrefixIndex::bytes_of(Item& item) {
  if (item.host) return item.host;
  if (!item.on_disk) return Status(Code::kInternal, "prefix cache: an item is in no tier");
  return disk_->get(entry_of(item));
}

void PrefixIndex::load_disk() {
  std::vector<DiskStore::Entry> entries = disk_->scan();
  std::vector<const DiskStore::Entry*> by_length;
  for (const DiskStore::Entry& entry : entries) by_length.push_back(&entry);
  std::stable_sort(by_length.begin(), by_length.end(), [](const auto* a, const auto* b) {
    return std::pair(a->length, a->kind) < std::pair(b->length, b->kind);
  });
  std::map<Hash128, Node*> nodes = {{root_.item.key, &root_}};
  std::map<Hash128, Item*> items;
  for (const DiskStore::Entry* entry : by_length) {
    const bool is_page = entry->kind == DiskStore::Kind::kPage;
    const auto parent = nodes.find(entry->parent);
    const std::ptrdiff_t n = std::ssize(entry->tokens);
    const bool fits = parent != nodes.end() && entry->length == parent->second->item.length + n &&
                      (is_page ? n == cache_.span() : n < cache_.span() && entry->length > 0);
    Item* item = nullptr;
    if (fits && is_page) {
      Node& node = add_child(*parent->second, entry->tokens);
      item = &node.item;
    } else if (fits) {
      auto& made = parent->second->snapshots.emplace_back(std::make_unique<Item>());
      item = made.get();
      item->node = parent->second;
      item->length = entry->length;
      item->tokens = entry->tokens;
      item->key = Hasher(entry->parent)
                      .add(std::span<const int32_t>(entry->tokens))
                      .add(&is_page, 1)
                      .finish();
    }
    if (item && item->key == entry->key && item_bytes(*item) == entry->bytes) {
      item->on_disk = true;
      item->disk_bytes = DiskStore::file_bytes(*entry);
      enter(disk_tier_, *item, item->disk_bytes);
      items[item->key] = item;
      if (is_page) nodes[item->key] = item->node;
      continue;
    }
    ++counts_.rejected_files;
    disk_->remove(entry->key);
    if (item) drop(*item);
  }
  for (const DiskStore::Entry& entry : entries) {
    const auto it = items.find(entry.key);
    if (it == items.end()) continue;
    ++clock_;
    touch(*it->second);
  }
  make_disk_room();
}

void PrefixIndex::flush() {
  if (disk_) disk_->flush();
}

PrefixCacheStats PrefixIndex::stats() const {
  PrefixCacheStats s = counts_;
  const auto fill = [](PrefixCacheStats::Tier& out, const Tier& tier) {
    out.pages = tier.pages;
    out.snapshots = tier.snapshots;
    out.bytes = tier.bytes;
    out.evictions = tier.evictions;
  };
  fill(s.device, device_);
  fill(s.host, host_);
  fill(s.disk, disk_tier_);
  if (disk_) s.rejected_files += disk_->rejected();
  return s;
}

Status PrefixIndex::check_node(const Node& node, Tier& device, Tier& host, Tier& disk) const {
  const auto count = [&](const Item& item) -> Status {
    Item* const key = const_cast<Item*>(&item);
    if (!item.anywhere()) {
      return Status(Code::kInternal, cat("prefix cache: ", item.is_page ? "page" : "snapshot",
                                         " at ", item.length, " is in no tier"));
    }
    const auto add = [&](Tier& tier, size_t bytes) {
      tier.items.insert(key);
      tier.bytes += bytes;
    };
    if (item.page >= 0) {
      if (!cache_.page_kept(item.page)) {
        return Status(Code::kInternal, cat("prefix cache: page ", item.page, " is not kept"));
      }
      add(device, copier_->page_bytes());
    }
    if (item.host) add(host, item.host->size());
    if (item.on_disk) add(disk, item.disk_bytes);
    return {};
  };
  if (node.parent) DSV4_TRY(count(node.item));
  for (const auto& snapshot : node.snapshots) DSV4_TRY(count(*snapshot));
  for (const auto& [hash, each] : node.children) {
    if (each->parent != &node || each->item.length != node.item.length + cache_.span()) {
      return Status(Code::kInternal, cat("prefix cache: a node at ", each->item.length,
                                         " hangs on one at ", node.item.length));
    }
    if (node.parent && each->item.used > node.item.used) {
      return Status(Code::kInternal, cat("prefix cache: the node at ", each->item.length,
                                         " was used after what it hangs on"));
    }
    DSV4_TRY(check_node(*each, device, host, disk));
  }
  return {};
}

Status PrefixIndex::check() const {
  Tier device, host, disk;
  DSV4_TRY(check_node(root_, device, host, disk));
  const auto same = [](const Tier& a, const Tier& b) {
    return a.bytes == b.bytes && a.items == b.items &&
           static_cast<int64_t>(b.items.size()) == b.pages + b.snapshots;
  };
  if (!same(device, device_) || !same(host, host_) || !same(disk, disk_tier_)) {
    return Status(Code::kInternal,
                  cat("prefix cache: recounted ", device.bytes, ", ", host.bytes, ", ", disk.bytes,
                      " bytes on device, host and disk, counted ", device_.bytes, ", ", host_.bytes,
                      ", ", disk_tier_.bytes));
  }
  int64_t kept = 0;
  for (int32_t page = 0; page < cache_.total_pages(); ++page)
    kept += cache_.page_kept(page) ? 1 : 0;
  if (kept != device_.pages || host_.bytes > limits_.host_bytes) {
    return Status(Code::kInternal, cat("prefix cache: ", kept, " pages kept for ", device_.pages,
                                       " nodes, ", host_.bytes, " bytes of ", limits_.host_bytes));
  }
  return cache_.check();
}

}  // namespace dsv4
