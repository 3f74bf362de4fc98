#include "cache/page_allocator.h"

#include "base/str.h"

namespace dsv4 {

PageAllocator::PageAllocator(int64_t pages) : in_use_(static_cast<size_t>(pages), 0) {
  free_.reserve(in_use_.size());
  for (int64_t id = pages - 1; id >= 0; --id) free_.push_back(static_cast<int32_t>(id));
}

Status PageAllocator::take(int64_t n, std::vector<int32_t>& pages) {
  if (n > available()) {
    return Status(Code::kResourceExhausted,
                  cat("cache: ", n, " more pages needed, ", available(), " of ", total(),
                      " free; allow more tokens, fewer sequences or a shorter context"));
  }
  for (int64_t i = 0; i < n; ++i) {
    const int32_t id = free_.back();
    free_.pop_back();
    in_use_[static_cast<size_t>(id)] = 1;
    pages.push_back(id);
  }
  return {};
}

Status PageAllocator::give_back(std::span<const int32_t> pages) {
  for (const int32_t id : pages) {
    if (!in_use(id)) {
      return Status(Code::kInternal, cat("cache: page ", id, " given back but not in use"));
    }
    in_use_[static_cast<size_t>(id)] = 0;
    free_.push_back(id);
  }
  return {};
}

bool PageAllocator::in_use(int32_t page) const {
  return page >= 0 && page < total() && in_use_[static_cast<size_t>(page)] != 0;
}

Status PageAllocator::check() const {
  std::vector<uint8_t> seen(in_use_.size(), 0);
  for (const int32_t id : free_) {
    if (id < 0 || id >= total() || in_use(id) || seen[static_cast<size_t>(id)] != 0) {
      return Status(Code::kInternal,
                    cat("cache: page ", id, " is on the free list twice or while in use"));
    }
    seen[static_cast<size_t>(id)] = 1;
  }
  for (int32_t id = 0; id < total(); ++id) {
    if (!in_use(id) && seen[static_cast<size_t>(id)] == 0) {
      return Status(Code::kInternal, cat("cache: page ", id, " is lost: neither free nor in use"));
    }
  }
  return {};
}

}  // namespace dsv4
