// PrefixIndex: what finished and running sequences leave behind for others that begin the same way.
// A tree: a node stands for one span of tokens behind its parent's and has the page of that span.
// At chosen lengths there is a snapshot of rings and tails, hung on the node of the last whole
// span; a sequence can begin at a snapshot and nowhere else, because the pages alone say nothing of
// the window.
//
// Tiers. A node's page is in the backend's memory (a page of the KvCache that the index keeps), in
// host memory, or on disk; a snapshot is in host memory or on disk. Whatever is stored is written
// to disk at once where there is a disk tier. When the backend needs pages, those that no sequence
// uses go, least recently used first: to host memory where that has room, else they are dropped. A
// node whose page is in no tier goes with everything below it. Using something uses all that is
// before it, so what goes first is never the beginning of something younger.
//
// Invariants, recounted by check(): every node's page is in a tier; bytes are the sum over what is
// held; the pages kept in the KvCache are exactly those of the nodes.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/hash.h"
#include "cache/disk_store.h"
#include "cache/kv_cache.h"
#include "cache/state_copier.h"
#include "dsv4/types.h"

namespace dsv4 {

struct PrefixLimits {
  size_t host_bytes = 0;
  size_t disk_bytes = 0;
};

class PrefixIndex {
 public:
  // `cache` must outlive the index; its reclaim hook is the index's from here on. `disk` may be
  // null; what it holds is taken up.
  PrefixIndex(KvCache& cache, std::unique_ptr<StateCopier> copier, PrefixLimits limits,
              std::unique_ptr<DiskStore> disk);
  ~PrefixIndex();
  PrefixIndex(const PrefixIndex&) = delete;
  PrefixIndex& operator=(const PrefixIndex&) = delete;

  struct Match {
    int64_t length = 0;      // a sequence could begin with so many tokens
    int64_t agreeing = 0;    // so many agree with something stored; >= length
    int64_t used_pages = 0;  // of `length`, those that running sequences use
  };
  // The best beginning for `tokens`, at most `most` of them.
  Match find(std::span<const int32_t> tokens, int64_t most) const;
  // Lets an empty sequence begin with it. Returns its length; 0 when there is nothing, or nothing
  // that there is room for.
  int64_t restore(std::span<const int32_t> tokens, int64_t most, SequenceCache& seq);
  // Stores the first `length` tokens that `seq` holds, at most max_rollback rows behind what it
  // wrote. Pages are shared, not copied. What has no room is not stored.
  void store(std::span<const int32_t> tokens, SequenceCache& seq, int64_t length);

  PrefixCacheStats stats() const;
  Status check() const;
  // Waits for the disk tier's writer.
  void flush();

 private:
  struct Node;
  // Something with bytes of its own: a node's page, or a snapshot.
  struct Item {
    Node* node = nullptr;  // whose page it is, or on which the snapshot hangs
    int64_t length = 0;    // tokens from the start to its end
    bool is_page = false;
    std::vector<int32_t> tokens;  // a page: its span; a snapshot: what it has beyond the node's end
    Hash128 key;
    int64_t used = 0;      // when, for the order of eviction
    int32_t page = -1;     // device tier
    SharedBytes host;      // host tier
    bool on_disk = false;  // disk tier
    size_t disk_bytes = 0;
    bool anywhere() const { return page >= 0 || host || on_disk; }
  };
  struct Node {
    Node* parent = nullptr;
    Item item;
    std::unordered_multimap<uint64_t, std::unique_ptr<Node>> children;  // by hash of their tokens
    std::vector<std::unique_ptr<Item>> snapshots;
  };
  // Least recently used first; of what was used together, the longest.
  struct Before {
    bool operator()(const Item* a, const Item* b) const;
  };
  using Lru = std::set<Item*, Before>;
  struct Tier {
    Lru items;
    size_t bytes = 0;
    int64_t pages = 0, snapshots = 0, evictions = 0;
  };

  static Node* child(const Node& node, std::span<const int32_t> span);
  static Node& add_child(Node& node, std::span<const int32_t> span);
  // The node of the last whole span of `tokens` that is in the tree.
  const Node& deepest(std::span<const int32_t> tokens) const;
  static Item* best_snapshot(const Node& last, std::span<const int32_t> tokens, int64_t most);
  // Now the most recently used, with all it hangs on.
  void touch(Item& item);
  void set_used(Item& item, int64_t used);

  void enter(Tier& tier, Item& item, size_t bytes);
  void leave(Tier& tier, Item& item, size_t bytes);
  bool to_device(Item& item, int32_t page);
  void off_device(Item& item);
  bool to_host(Item& item, SharedBytes bytes);
  void off_host(Item& item);
  void to_disk(Item& item, const SharedBytes& bytes);
  void off_disk(Item& item);
  bool make_host_room(size_t bytes);
  void make_disk_room();
  void reclaim(int64_t pages);
  bool evictable(const Item& item) const;
  Item* oldest(const Tier& tier) const;
  // Takes it out of a tier; out of the tree, with what hangs on it, when that was the last.
  void drop_if_lost(Item& item);
  void drop(Item& item);
  void drop_below(Node& node);

  enum class Restored : uint8_t { kYes, kNoRoom, kLost };  // lost: out of the tree, look again
  Result<SharedBytes> bytes_of(Item& item);
  PrefixCacheStats::Tier& tier_of(const Item& item);
  Restored restore_at(Item& snapshot, SequenceCache& seq);
  Restored restore_pages(Node& last, std::vector<int32_t>& pages, std::vector<int32_t>& taken);
  void store_snapshot(Node& node, std::span<const int32_t> rest, const SequenceCache& seq,
                      int64_t length);
  void load_disk();
  Status check_node(const Node& node, Tier& device, Tier& host, Tier& disk) const;
  DiskStore::Entry entry_of(const Item& item) const;
  size_t item_bytes(const Item& item) const;

  KvCache& cache_;
  const std::unique_ptr<StateCopier> copier_;
  const PrefixLimits limits_;
  const std::unique_ptr<DiskStore> disk_;
  Node root_;
  Tier device_, host_, disk_tier_;
  int64_t clock_ = 0;
  int64_t pinned_ = -1;           // what was used at this time stays where it is
  const Item* moving_ = nullptr;  // so does what this one hangs on
  PrefixCacheStats counts_;
};

}  // namespace dsv4
