// A grammar at work over a vocabulary: which tokens may come next. The network is followed with all
// its alternatives at once; the sets of places that this gives are numbered as they appear, with
// their moves and masks, so that what was seen before is one look-up (a deterministic automaton,
// made as it is needed).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text/grammar.h"
#include "text/tokenizer.h"

namespace dsv4 {

// The tokens of a vocabulary that stand for bytes, sorted so that one walk over them shares the work
// of equal beginnings. Added tokens (markers) are not among them. `tokenizer` must outlive this. One for all grammars.
class TokenTable {
 public:
  TokenTable(const Tokenizer& tokenizer, int64_t vocab_size);

  struct Entry {
    int32_t id;
    uint32_t shared;  // leading bytes in common with the entry before
    std::string_view bytes;
  };
  const std::vector<Entry>& entries() const { return entries_; }
  // The bytes of an ordinary token; empty for an added one.
  std::string_view bytes(int32_t id) const;
  size_t words() const { return words_; }  // 64-bit words of a mask

 private:
  std::vector<Entry> entries_;
  std::vector<std::string_view> bytes_;
  size_t words_ = 0;
};

class GrammarAutomaton {
 public:
  using State = int32_t;
  static constexpr State kDead = -1;  // nothing of the grammar begins like this

  // `tokens` must outlive this. `eos` is allowed where the text may end.
  GrammarAutomaton(Grammar grammar, std::shared_ptr<const TokenTable> tokens, int32_t eos);

  // All of these may be called from several threads; they take turns.
  State start();
  State step(State state, std::string_view bytes);
  State step_token(State state, int32_t token);
  bool may_end(State state);
  // How many states have been made so far: what this holds on to grows with it.
  size_t states();
  // Bit id % 64 of word id / 64 is set for a token that may come next. Valid while the pointer is
  // held.
  std::shared_ptr<const std::vector<uint64_t>> allowed(State state);

 private:
  // Deeper nesting than this is not allowed to begin.
  static constexpr int32_t kMaxDepth = 256;
  // Places at a time; a grammar that is more ambiguous than this is dead there.
  static constexpr size_t kMaxPlaces = 4096;
  // Masks kept; beyond, all are dropped and made anew.
  static constexpr size_t kMaxMasks = 512;

  // Where a rule goes on once the one inside it has ended.
  struct Frame {
    int32_t state, parent, depth;
  };
  struct Place {
    int32_t state, frame;
    auto operator<=>(const Place&) const = default;
  };
  struct Set {
    std::vector<Place> places;  // sorted; only those with a byte or token to take, or the end
    std::unique_ptr<std::array<State, 256>> moves;
    bool may_end = false;
  };

  int32_t frame(int32_t state, int32_t parent);
  void close(std::vector<Place>& places);
  State intern(std::vector<Place> places);
  State step_byte(State state, uint8_t byte);
  State locked_step_token(State state, int32_t token);
  std::shared_ptr<const std::vector<uint64_t>> make_mask(State state);

  const Grammar grammar_;
  const std::shared_ptr<const TokenTable> tokens_;
  const int32_t eos_;
  std::vector<bool> is_end_;  // by state of the network: the end of a rule
  std::vector<bool> is_tail_;  // nothing but empty edges, one each, from here to the end of a rule

  std::mutex mutex_;
  std::vector<Frame> frames_;
  std::map<std::pair<int32_t, int32_t>, int32_t> frame_ids_;
  std::vector<Set> sets_;
  std::map<std::vector<Place>, State> set_ids_;
  std::unordered_map<State, std::shared_ptr<const std::vector<uint64_t>>> masks_;
};

}  // namespace dsv4
