#include "ops/workspace.h"

#include <algorithm>

#include "ops/backend.h"

namespace dsv4 {
namespace {

constexpr size_t kAlign = 256;
constexpr size_t kMinBlock = size_t{1} << 20;

}  // namespace

size_t Workspace::bytes() const {
  size_t sum = 0;
  for (const Buffer& b : blocks_) sum += b.bytes();
  return sum;
}

Result<void*> Workspace::take_bytes(size_t bytes) {
  bytes = (bytes + kAlign - 1) / kAlign * kAlign;
  while (block_ < blocks_.size() && used_ + bytes > blocks_[block_].bytes()) {
    ++block_;
    used_ = 0;
  }
  if (block_ == blocks_.size()) {
    DSV4_ASSIGN(Buffer block, backend_.allocate(std::max(bytes, kMinBlock)));
    blocks_.push_back(std::move(block));
    ++growths_;
  }
  void* p = blocks_[block_].as<char>() + used_;
  used_ += bytes;
  return p;
}

}  // namespace dsv4
