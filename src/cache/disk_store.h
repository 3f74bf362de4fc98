// DiskStore: the disk tier of the prefix cache, one file per page or snapshot. A file says whose it
// is (fingerprint of model, layout and program), which tokens it stands for and in what order they
// come (the key of what lies before), and carries a checksum of all of it. It is written under
// another name and renamed, by a thread of its own: a process that is killed leaves a whole file or
// none, and what is torn all the same, or foreign, is detected and removed.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/hash.h"
#include "dsv4/status.h"

namespace dsv4 {

// Bytes that several tiers may hold at the same time; never changed.
using SharedBytes = std::shared_ptr<const std::vector<char>>;

class DiskStore {
 public:
  enum class Kind : uint32_t { kPage = 1, kSnapshot = 2 };
  struct Entry {
    Kind kind = Kind::kPage;
    Hash128 key, parent;          // parent: of the whole spans before `tokens`
    int64_t length = 0;           // tokens from the start to the end of `tokens`
    std::vector<int32_t> tokens;  // a page: one span; a snapshot: what it has beyond whole spans
    size_t bytes = 0;             // of the data
  };

  // Makes the folder, locks it. kUnavailable when another process has it.
  static Result<std::unique_ptr<DiskStore>> open(const std::string& dir, Hash128 fingerprint);
  ~DiskStore();
  DiskStore(const DiskStore&) = delete;
  DiskStore& operator=(const DiskStore&) = delete;

  // What the folder holds, least recently used first; the data is not read yet. Removes what no
  // reader could use.
  std::vector<Entry> scan();
  // Hands a file to the writer. False when it has too much to do; then there is no such file.
  bool put(const Entry& entry, SharedBytes data);
  // The data of an entry, checked; kCorrupt or kNotFound when it cannot be used, and it is gone
  // then.
  Result<SharedBytes> get(const Entry& entry);
  void remove(Hash128 key);
  // The next scan sees it as used now.
  void touch(Hash128 key);
  // Waits until everything put so far is on disk.
  void flush();

  int64_t rejected() const;  // files removed because they could not be used
  static size_t file_bytes(const Entry& entry);

 private:
  struct Pending {
    Entry entry;
    SharedBytes data;
  };
  DiskStore(std::string dir, Hash128 fingerprint, int lock);
  std::string path(Hash128 key) const;
  void write_files();
  Status write_file(const Pending& pending) const;
  void reject(const std::string& file);

  const std::string dir_;
  const Hash128 fingerprint_;
  const int lock_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Hash128, Pending> pending_;  // not on disk yet
  std::deque<Hash128> order_;
  size_t pending_bytes_ = 0;
  bool stop_ = false;
  int64_t rejected_ = 0;
  std::thread writer_;  // last: it uses all of the above
};

}  // namespace dsv4
