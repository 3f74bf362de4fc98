// What sequences take from the prefix cache and what they leave there.
#include <algorithm>

#include "engine/engine_core.h"

namespace dsv4 {
namespace {

// Fewer tokens than this are not worth a snapshot of their own, or a wait.
constexpr int64_t kWorthwhile = 32;

int64_t common_length(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace

// Where a prompt stops on its way to leave a snapshot: every few spans, at its last whole span, and
// where it parts from what is stored, since what two prompts share a third will share too.
void EngineCore::plan_stops(Sequence& seq, int64_t agreeing) const {
  seq.stops.clear();
  const int64_t span = cache_->span(), begin = seq.cache.length();
  const int64_t last = std::ssize(seq.tokens) - 1;
  if (const int64_t every = limits_.prefix.snapshot_spans * span; every > 0) {
    for (int64_t at = (begin / every + 1) * every; at < last; at += every) seq.stops.push_back(at);
  }
  if (last / span * span > begin) seq.stops.push_back(last / span * span);
  if (agreeing >= begin + kWorthwhile && agreeing < last) seq.stops.push_back(agreeing);
  std::sort(seq.stops.begin(), seq.stops.end());
  seq.stops.erase(std::unique(seq.stops.begin(), seq.stops.end()), seq.stops.end());
}

void EngineCore::begin_with_prefix(Sequence& seq) {
  if (!seq.caches) return;
  const int64_t most = std::ssize(seq.tokens) - 1;
  const int64_t agreeing = prefix_->find(seq.tokens, most).agreeing;
  // A prompt whose own log probabilities are asked for runs in full.
  if (!seq.scores_prompt() && seq.cache.length() == 0) {
    const int64_t length = prefix_->restore(seq.tokens, most, seq.cache);
    if (!seq.started_once()) {
      seq.usage.cached_tokens = length;
      stats_.cached_tokens += length;
    }
  }
  plan_stops(seq, agreeing);
}

void EngineCore::leave_prefix(Sequence& seq, int64_t length) {
  if (seq.caches) prefix_->store(seq.tokens, seq.cache, length);
}

// Whether someone who runs is about to leave behind what this one could begin with. If need be,
// that one is asked to stop where the two part.
bool EngineCore::expects_prefix(const Sequence& seq) {
  if (!seq.caches || seq.scores_prompt()) return false;
  int64_t held = -1;
  for (const auto& other : running_) {
    if (!other->caches || other->pending() <= 1) continue;
    const int64_t shared = std::min({common_length(seq.tokens, other->tokens),
                                     std::ssize(seq.tokens) - 1, std::ssize(other->tokens) - 1});
    if (shared < kWorthwhile || other->cache.length() >= shared) continue;
    if (held < 0) held = prefix_->find(seq.tokens, std::ssize(seq.tokens) - 1).length;
    if (shared < held + kWorthwhile) continue;
    const auto at = std::lower_bound(other->stops.begin(), other->stops.end(), shared);
    const bool stops = at != other->stops.end() && *at == shared;
    if (!stops && shared < std::ssize(other->tokens) - 1) other->stops.insert(at, shared);
    return true;
  }
  return false;
}

}  // namespace dsv4
