#include "cache/page_allocator.h"

#include "base/str.h"

namespace dsv4 {
namespace {

Status misuse(int32_t page, std::string_view what) {
  return Status(Code::kInternal, cat("cache: page ", page, " ", what));
}

}  // namespace

PageAllocator::PageAllocator(int64_t pages) : pages_(static_cast<size_t>(pages)) {
  free_.reserve(pages_.size());
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
    at(id).users = 1;
    pages.push_back(id);
  }
  return {};
}

Status PageAllocator::use(int32_t page) {
  if (!in_use(page)) return misuse(page, "shared but not in use");
  Page& p = at(page);
  if (p.users++ == 0) --idle_;
  return {};
}

Status PageAllocator::give_back(std::span<const int32_t> pages) {
  for (const int32_t id : pages) {
    if (users(id) == 0) return misuse(id, "given back but not in use");
    Page& p = at(id);
    if (--p.users > 0) continue;
    if (p.kept) {
      ++idle_;
    } else {
      free_.push_back(id);
    }
  }
  return {};
}

Status PageAllocator::keep(int32_t page) {
  if (users(page) == 0 || kept(page)) return misuse(page, "kept without a user, or twice");
  at(page).kept = true;
  return {};
}

Status PageAllocator::let_go(int32_t page) {
  if (!kept(page)) return misuse(page, "let go but not kept");
  Page& p = at(page);
  p.kept = false;
  if (p.users == 0) {
    --idle_;
    free_.push_back(page);
  }
  return {};
}

Status PageAllocator::check() const {
  std::vector<uint8_t> seen(pages_.size(), 0);
  for (const int32_t id : free_) {
    if (!known(id) || in_use(id) || seen[static_cast<size_t>(id)] != 0) {
      return misuse(id, "is on the free list twice or while in use");
    }
    seen[static_cast<size_t>(id)] = 1;
  }
  int64_t idle_pages = 0;
  for (int32_t id = 0; id < total(); ++id) {
    if (!in_use(id) && seen[static_cast<size_t>(id)] == 0) {
      return misuse(id, "is lost: neither free nor in use");
    }
    if (kept(id) && users(id) == 0) ++idle_pages;
  }
  if (idle_pages != idle_) {
    return Status(Code::kInternal,
                  cat("cache: ", idle_pages, " pages are idle, ", idle_, " are counted"));
  }
  return {};
}

}  // namespace dsv4
