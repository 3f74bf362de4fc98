// PageAllocator: which page ids are free. One id stands for a span of tokens in every paged region.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dsv4/status.h"

namespace dsv4 {

class PageAllocator {
 public:
  explicit PageAllocator(int64_t pages);

  int64_t total() const { return static_cast<int64_t>(in_use_.size()); }
  int64_t available() const { return static_cast<int64_t>(free_.size()); }

  // Appends n ids to `pages`, or changes nothing: kResourceExhausted.
  Status take(int64_t n, std::vector<int32_t>& pages);
  // Gives ids back; an id that is not in use is a bug of ours and is reported, not accepted.
  Status give_back(std::span<const int32_t> pages);

  // Integrity: every id is either on the free list once or in use. Linear in the number of pages.
  Status check() const;
  bool in_use(int32_t page) const;

 private:
  std::vector<int32_t> free_;    // a stack: the page given back last is taken first
  std::vector<uint8_t> in_use_;  // by id
};

}  // namespace dsv4
