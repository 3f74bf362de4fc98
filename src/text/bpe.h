// Byte-pair encoding of one piece of text: the adjacent pair with the lowest merge rank is joined,
// the leftmost one on a tie, until no adjacent pair has a merge.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "dsv4/status.h"

namespace dsv4 {

class Bpe {
 public:
  Bpe() { byte_token_.fill(-1); }

  void set_byte_token(unsigned char byte, int32_t id) { byte_token_[byte] = id; }

  // Makes room for `count` merges; must come before the first add_merge.
  void reserve_merges(size_t count);
  // A pair that is named again takes the later rank, as in the original.
  void add_merge(int32_t left, int32_t right, uint32_t rank, int32_t result);

  // Memory that encode() uses again from piece to piece.
  struct Scratch {
    struct Symbol {
      int32_t id;
      uint32_t previous, next;
      uint32_t rank;  // of the merge with the next symbol, kNone where there is none
    };
    std::vector<Symbol> symbols;
    std::vector<uint64_t> heap;  // rank << 32 | index of the left symbol
  };

  // Appends the ids of `piece`; O(n log n) for n bytes. Error: a byte that has no token.
  Status encode(std::string_view piece, std::vector<int32_t>& ids, Scratch& scratch) const;

 private:
  static constexpr uint32_t kNone = UINT32_MAX;

  struct Slot {
    uint64_t pair;  // left << 32 | right; kEmpty where unused
    uint32_t rank;
    int32_t result;
  };
  static constexpr uint64_t kEmpty = UINT64_MAX;

  static uint64_t pair_of(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  // The slot of the pair, or the free one where it would go; the table must not be empty.
  size_t slot_of(uint64_t pair) const;
  const Slot* find(int32_t left, int32_t right) const;

  std::array<int32_t, 256> byte_token_;
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
};

}  // namespace dsv4
