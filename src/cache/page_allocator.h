// PageAllocator: which page ids are free. One id stands for a span of tokens in every paged region.
// A page has users (sequences, any number) and perhaps a keeper (the prefix index). It is free when
// it has neither; kept and without users it is idle, which means the keeper can let it go.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dsv4/status.h"

namespace dsv4 {

class PageAllocator {
 public:
  explicit PageAllocator(int64_t pages);

  int64_t total() const { return static_cast<int64_t>(pages_.size()); }
  int64_t available() const { return static_cast<int64_t>(free_.size()); }
  int64_t idle() const { return idle_; }

  // Appends n ids with one user each to `pages`, or changes nothing: kResourceExhausted.
  Status take(int64_t n, std::vector<int32_t>& pages);
  // One more user of a page that is in use or kept.
  Status use(int32_t page);
  // One user less each; an id without users is a bug of ours and is reported, not accepted.
  Status give_back(std::span<const int32_t> pages);
  Status keep(int32_t page);
  Status let_go(int32_t page);

  int64_t users(int32_t page) const { return known(page) ? at(page).users : 0; }
  bool kept(int32_t page) const { return known(page) && at(page).kept; }
  bool in_use(int32_t page) const { return users(page) > 0 || kept(page); }
  // Integrity: every id is either on the free list once or in use. Linear in the number of pages.
  Status check() const;

 private:
  struct Page {
    int32_t users = 0;
    bool kept = false;
  };
  bool known(int32_t page) const { return page >= 0 && page < total(); }
  Page& at(int32_t page) { return pages_[static_cast<size_t>(page)]; }
  const Page& at(int32_t page) const { return pages_[static_cast<size_t>(page)]; }

  std::vector<int32_t> free_;  // a stack: the page given back last is taken first
  std::vector<Page> pages_;    // by id
  int64_t idle_ = 0;
};

}  // namespace dsv4
