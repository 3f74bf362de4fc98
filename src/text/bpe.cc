#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "base/str.h"

namespace dsv4 {

void Bpe::reserve_merges(size_t count) {
  slots_.assign(std::bit_ceil(std::max<size_t>(2 * count, 16)), Slot{kEmpty, kNone, -1});
}

size_t Bpe::slot_of(uint64_t pair) const {
  const size_t mask = slots_.size() - 1;
  size_t i = static_cast<size_t>((pair * 0x9E3779B97F4A7C15ULL) >> 32) & mask;
  while (slots_[i].pair != kEmpty && slots_[i].pair != pair) i = (i + 1) & mask;
  return i;
}

const Bpe::Slot* Bpe::find(int32_t left, int32_t right) const {
  if (slots_.empty()) return nullptr;
  const Slot& slot = slots_[slot_of(pair_of(left, right))];
  return slot.pair == kEmpty ? nullptr : &slot;
}

void Bpe::add_merge(int32_t left, int32_t right, uint32_t rank, int32_t result) {
  const uint64_t pair = pair_of(left, right);
  slots_[slot_of(pair)] = Slot{pair, rank, result};
}

Status Bpe::encode(std::string_view piece, std::vector<int32_t>& ids, Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  symbols.clear();
  heap.clear();

  const auto count = static_cast<uint32_t>(piece.size());
  for (uint32_t i = 0; i < count; ++i) {
    const auto byte = static_cast<unsigned char>(piece[i]);
    const int32_t id = byte_token_[byte];
    if (id < 0) {
      return Status(Code::kInvalidArgument,
                    cat("byte ", static_cast<int>(byte),
                        " of the text has no token: the vocabulary "
                        "lacks a part of the byte alphabet; use the model's own tokenizer.json"));
    }
    symbols.push_back({id, i == 0 ? kNone : i - 1, i + 1 == count ? kNone : i + 1, kNone});
  }

  const auto rank_pair = [&](uint32_t left) {
    auto& symbol = symbols[left];
    symbol.rank = kNone;
    if (symbol.next == kNone) return;
    if (const Slot* merge = find(symbol.id, symbols[symbol.next].id)) {
      symbol.rank = merge->rank;
      heap.push_back(uint64_t{merge->rank} << 32 | left);
    }
  };
  for (uint32_t i = 0; i < count; ++i) rank_pair(i);
  std::make_heap(heap.begin(), heap.end(), std::greater<>());

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto rank = static_cast<uint32_t>(heap.back() >> 32);
    const auto left = static_cast<uint32_t>(heap.back());
    heap.pop_back();
    // A neighbour may have been joined since: ranks are unique, so the same rank is the same pair.
    if (symbols[left].rank != rank) continue;
    const uint32_t right = symbols[left].next;
    symbols[left].id = find(symbols[left].id, symbols[right].id)->result;
    symbols[left].next = symbols[right].next;
    symbols[right].rank = kNone;
    if (symbols[left].next != kNone) symbols[symbols[left].next].previous = left;

    const auto rerank = [&](uint32_t at) {
      const size_t before = heap.size();
      rank_pair(at);
      if (heap.size() > before) std::push_heap(heap.begin(), heap.end(), std::greater<>());
    };
    rerank(left);
    if (symbols[left].previous != kNone) rerank(symbols[left].previous);
  }
  for (uint32_t i = 0; i < count && i != kNone; i = symbols[i].next) ids.push_back(symbols[i].id);
  return {};
}

}  // namespace dsv4
