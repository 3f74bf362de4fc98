#include "text/grammar_automaton.h"

#include <algorithm>
#include <set>

namespace dsv4 {
namespace {

using Kind = Grammar::Edge::Kind;
constexpr int32_t kNoFrame = -1;
constexpr GrammarAutomaton::State kUnknown = -2;

}  // namespace

TokenTable::TokenTable(const Tokenizer& tokenizer, int64_t vocab_size) {
  const auto size = static_cast<size_t>(std::max<int64_t>(vocab_size, tokenizer.vocab_size()));
  bytes_.resize(size);
  words_ = (size + 63) / 64;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const auto bytes = tokenizer.token_bytes(id);
    if (!bytes || bytes->empty() || tokenizer.is_added(id)) continue;
    bytes_[static_cast<size_t>(id)] = *bytes;
    entries_.push_back({id, 0, *bytes});
  }
  std::sort(entries_.begin(), entries_.end(),
            [](const Entry& a, const Entry& b) { return a.bytes < b.bytes; });
  for (size_t i = 1; i < entries_.size(); ++i) {
    const std::string_view a = entries_[i - 1].bytes, b = entries_[i].bytes;
    const auto differ = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
    entries_[i].shared = static_cast<uint32_t>(differ.first - a.begin());
  }
}

std::string_view TokenTable::bytes(int32_t id) const {
  return id >= 0 && static_cast<size_t>(id) < bytes_.size() ? bytes_[static_cast<size_t>(id)]
                                                            : std::string_view();
}

GrammarAutomaton::GrammarAutomaton(Grammar grammar, std::shared_ptr<const TokenTable> tokens,
                                   int32_t eos)
    : grammar_(std::move(grammar)), tokens_(std::move(tokens)), eos_(eos) {
  is_end_.resize(grammar_.states.size());
  for (const Grammar::Rule& rule : grammar_.rules) is_end_[static_cast<size_t>(rule.end)] = true;
  is_tail_ = is_end_;
  for (size_t i = 0; i < grammar_.states.size(); ++i) {
    std::vector<size_t> path;
    size_t at = i;
    // A circle of empty edges is longer than any way out.
    while (!is_tail_[at] && path.size() < 64) {
      const auto& edges = grammar_.states[at];
      if (edges.size() != 1 || edges[0].kind != Kind::kEmpty) break;
      path.push_back(at);
      at = static_cast<size_t>(edges[0].target);
    }
    if (!is_tail_[at]) continue;
    for (const size_t state : path) is_tail_[state] = true;
  }
}

int32_t GrammarAutomaton::frame(int32_t state, int32_t parent) {
  const auto [it, added] =
      frame_ids_.try_emplace({state, parent}, static_cast<int32_t>(frames_.size()));
  if (added) {
    const int32_t depth = parent == kNoFrame ? 1 : frames_[static_cast<size_t>(parent)].depth + 1;
    frames_.push_back({state, parent, depth});
  }
  return it->second;
}

// Follows everything that takes nothing: empty edges, into rules, and out of rules that ended.
void GrammarAutomaton::close(std::vector<Place>& places) {
  std::set<Place> seen(places.begin(), places.end());
  std::vector<Place> open(seen.begin(), seen.end());
  const auto visit = [&](Place place) {
    if (seen.insert(place).second) open.push_back(place);
  };
  while (!open.empty()) {
    if (seen.size() > kMaxPlaces) return places.clear();
    const Place at = open.back();
    open.pop_back();
    const auto& edges = grammar_.states[static_cast<size_t>(at.state)];
    if (is_end_[static_cast<size_t>(at.state)] && at.frame != kNoFrame) {
      const Frame& back = frames_[static_cast<size_t>(at.frame)];
      visit({back.state, back.parent});
    }
    for (const Grammar::Edge& e : edges) {
      if (e.kind == Kind::kEmpty) visit({e.target, at.frame});
      if (e.kind != Kind::kRule) continue;
      const int32_t inside = grammar_.rules[static_cast<size_t>(e.value)].start;
      // A rule that is the last thing of its caller returns to the caller's caller: lists do not
      // pile up frames, and a rule that is an alternative of itself comes to an end.
      if (is_tail_[static_cast<size_t>(e.target)] && at.frame != kNoFrame) {
        visit({inside, at.frame});
      } else if (at.frame == kNoFrame || frames_[static_cast<size_t>(at.frame)].depth < kMaxDepth) {
        visit({inside, frame(e.target, at.frame)});
      }
    }
  }
  places.clear();
  const int32_t end = grammar_.rules[static_cast<size_t>(grammar_.root)].end;
  for (const Place& place : seen) {
    const auto& edges = grammar_.states[static_cast<size_t>(place.state)];
    const bool takes = std::any_of(edges.begin(), edges.end(), [](const Grammar::Edge& e) {
      return e.kind == Kind::kBytes || e.kind == Kind::kToken;
    });
    if (takes || (place.state == end && place.frame == kNoFrame)) places.push_back(place);
  }
}

GrammarAutomaton::State GrammarAutomaton::intern(std::vector<Place> places) {
  close(places);
  if (places.empty()) return kDead;
  const auto [it, added] = set_ids_.try_emplace(places, static_cast<State>(sets_.size()));
  if (added) {
    const Place end{grammar_.rules[static_cast<size_t>(grammar_.root)].end, kNoFrame};
    Set set;
    set.may_end = std::binary_search(places.begin(), places.end(), end);
    set.places = std::move(places);
    sets_.push_back(std::move(set));
  }
  return it->second;
}

GrammarAutomaton::State GrammarAutomaton::start() {
  const std::lock_guard lock(mutex_);
  return intern({{grammar_.rules[static_cast<size_t>(grammar_.root)].start, kNoFrame}});
}

GrammarAutomaton::State GrammarAutomaton::step_byte(State state, uint8_t byte) {
  Set& set = sets_[static_cast<size_t>(state)];
  if (!set.moves) {
    set.moves = std::make_unique<std::array<State, 256>>();
    set.moves->fill(kUnknown);
  }
  if (const State known = (*set.moves)[byte]; known != kUnknown) return known;
  std::vector<Place> next;
  for (const Place& place : set.places) {
    for (const Grammar::Edge& e : grammar_.states[static_cast<size_t>(place.state)]) {
      if (e.kind == Kind::kBytes && e.low <= byte && byte <= e.high) {
        next.push_back({e.target, place.frame});
      }
    }
  }
  const State made = next.empty() ? kDead : intern(std::move(next));
  (*sets_[static_cast<size_t>(state)].moves)[byte] = made;
  return made;
}

GrammarAutomaton::State GrammarAutomaton::step(State state, std::string_view bytes) {
  const std::lock_guard lock(mutex_);
  for (const char c : bytes) {
    if (state == kDead) break;
    state = step_byte(state, static_cast<uint8_t>(c));
  }
  return state;
}

GrammarAutomaton::State GrammarAutomaton::locked_step_token(State state, int32_t token) {
  std::vector<Place> next;
  for (const Place& place : sets_[static_cast<size_t>(state)].places) {
    for (const Grammar::Edge& e : grammar_.states[static_cast<size_t>(place.state)]) {
      if (e.kind == Kind::kToken && e.value == token) next.push_back({e.target, place.frame});
    }
  }
  if (!next.empty()) return intern(std::move(next));
  const std::string_view bytes = tokens_->bytes(token);
  if (bytes.empty()) return kDead;
  for (const char c : bytes) {
    if (state == kDead) break;
    state = step_byte(state, static_cast<uint8_t>(c));
  }
  return state;
}

GrammarAutomaton::State GrammarAutomaton::step_token(State state, int32_t token) {
  const std::lock_guard lock(mutex_);
  return state == kDead ? kDead : locked_step_token(state, token);
}

bool GrammarAutomaton::may_end(State state) {
  const std::lock_guard lock(mutex_);
  return state != kDead && sets_[static_cast<size_t>(state)].may_end;
}

size_t GrammarAutomaton::states() {
  const std::lock_guard lock(mutex_);
  return sets_.size();
}

std::shared_ptr<const std::vector<uint64_t>> GrammarAutomaton::allowed(State state) {
  const std::lock_guard lock(mutex_);
  if (const auto found = masks_.find(state); found != masks_.end()) return found->second;
  auto mask = make_mask(state);
  if (masks_.size() >= kMaxMasks) masks_.clear();
  masks_[state] = mask;
  return mask;
}

std::shared_ptr<const std::vector<uint64_t>> GrammarAutomaton::make_mask(State state) {
  const auto mask = std::make_shared<std::vector<uint64_t>>(tokens_->words(), 0);
  const auto set_bit = [&](int32_t id) {
    (*mask)[static_cast<size_t>(id) / 64] |= uint64_t{1} << (id % 64);
  };
  if (state == kDead) return mask;
  if (sets_[static_cast<size_t>(state)].may_end) set_bit(eos_);
  for (const Place& place : sets_[static_cast<size_t>(state)].places) {
    for (const Grammar::Edge& e : grammar_.states[static_cast<size_t>(place.state)]) {
      if (e.kind == Kind::kToken) set_bit(e.value);
    }
  }
  // Tokens with the same beginning come one after the other: trail[n] is the state behind the first
  // n bytes of the current one.
  std::vector<State> trail = {state};
  for (const TokenTable::Entry& entry : tokens_->entries()) {
    if (entry.shared + 1 < trail.size()) trail.resize(entry.shared + 1);
    // The shared beginning had died already.
    if (trail.size() < entry.shared + 1 || trail.back() == kDead) continue;
    while (trail.back() != kDead && trail.size() <= entry.bytes.size()) {
      trail.push_back(step_byte(trail.back(), static_cast<uint8_t>(entry.bytes[trail.size() - 1])));
    }
    if (trail.back() != kDead) set_bit(entry.id);
  }
  return mask;
}

}  // namespace dsv4
