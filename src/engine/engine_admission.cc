// Who has a place in the cache: admission, sessions, preemption.
#include <algorithm>
#include <limits>
#include <utility>

#include "engine/engine_core.h"
#include "engine/scheduler.h"

namespace dsv4 {

const EngineCore::Session* EngineCore::cached_session(const Sequence& seq) const {
  const auto it = sessions_.find(seq.request.session);
  return it != sessions_.end() && it->second.cache ? &it->second : nullptr;
}

bool EngineCore::fits(const Sequence& seq) const {
  const Session* const session = cached_session(seq);
  if (!session && cache_->free_slots() == 0) return false;
  int64_t pages = cache_->pages_for(std::ssize(seq.tokens));
  if (session) {
    pages -= std::ssize(session->cache.pages());
  } else if (seq.caches && !seq.scores_prompt()) {
    pages -= prefix_->find(seq.tokens, std::ssize(seq.tokens) - 1).used_pages;
  }
  // Prompts that were admitted take their pages as they run.
  for (const auto& running : running_) {
    pages += std::max<int64_t>(
        0, cache_->pages_for(std::ssize(running->tokens)) - running->held_pages());
  }
  pages += admission_reserve(std::ssize(running_), cache_->total_pages());
  return pages <= available_pages();
}

bool EngineCore::evict_idle_session(SessionId keep) {
  Session* oldest = nullptr;
  for (auto& [id, session] : sessions_) {
    if (id == keep || !session.cache) continue;
    if (!oldest || session.last_used < oldest->last_used) oldest = &session;
  }
  if (!oldest) return false;
  oldest->cache.free();
  oldest->tokens.clear();
  return true;
}

// One idle session or one less urgent sequence less. False when that cannot help.
bool EngineCore::make_place(const Sequence& seq) {
  if (evict_idle_session(seq.request.session)) return true;
  std::vector<PlaceView> views;
  int64_t pages = available_pages();
  for (const auto& running : running_) {
    views.push_back(
        {.order = running->id, .level = running->level, .pages = running->held_pages()});
    if (running->level < seq.request.priority) pages += running->held_pages();
  }
  if (pages < cache_->pages_for(std::ssize(seq.tokens))) return false;
  const int64_t victim = choose_victim(views, seq.request.priority);
  if (victim < 0) return false;
  preempt(static_cast<size_t>(victim));
  return true;
}

void EngineCore::preempt(size_t index) {
  std::unique_ptr<Sequence> seq = std::move(running_[index]);
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(index));
  ++stats_.preemptions;
  ++seq->usage.preemptions;
  seq->lost = seq->cache.length();
  leave_prefix(*seq, seq->lost);
  seq->cache.free();
  seq->queued_since = clock_();
  waiting_.push_back(std::move(seq));
}

void EngineCore::reuse_session(Sequence& seq) {
  if (!cached_session(seq)) return;
  Session& session = sessions_[seq.request.session];
  seq.cache = std::move(session.cache);
  const auto [ours, theirs] = std::mismatch(seq.tokens.begin(), seq.tokens.end(),
                                            session.tokens.begin(), session.tokens.end());
  // The last token of the prompt has to run in any case: its logits are what is asked for. So does
  // all of it where the prompt's own log probabilities are.
  int64_t common = std::min<int64_t>(ours - seq.tokens.begin(), std::ssize(seq.tokens) - 1);
  if (seq.scores_prompt()) common = 0;
  if (!seq.cache.rollback(seq.cache.length() - common).ok()) seq.cache.clear();
  session.tokens.clear();
  seq.usage.cached_tokens = seq.cache.length();
  stats_.cached_tokens += seq.usage.cached_tokens;
}

void EngineCore::admit(size_t index) {
  std::unique_ptr<Sequence> seq = std::move(waiting_[index]);
  waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(index));
  reuse_session(*seq);
  if (!seq->cache) {
    auto opened = cache_->open();
    if (!opened.ok()) return fail(*seq, opened.status());
    seq->cache = std::move(opened).value();
  }
  begin_with_prefix(*seq);
  stats_.recomputed_tokens += std::max<int64_t>(0, seq->lost - seq->cache.length());
  seq->lost = 0;
  const Seconds now = clock_();
  seq->waited += now - seq->queued_since;
  seq->level = aged_level(seq->request.priority, seq->waited);
  seq->last_run = stats_.steps;
  if (!seq->started_once()) {
    seq->started = now;
    seq->usage.queue_seconds = now - seq->submitted;
  }
  running_.push_back(std::move(seq));
}

void EngineCore::admit_waiting() {
  // Those who do better to wait for what another one is computing are passed over, a few per step.
  constexpr int64_t kMostPassedOver = 16;
  std::vector<const Sequence*> passed;
  std::vector<PlaceView> views;
  std::vector<size_t> indices;
  while (!waiting_.empty()) {
    const Seconds now = clock_();
    views.clear();
    indices.clear();
    for (size_t i = 0; i < waiting_.size(); ++i) {
      const Sequence& seq = *waiting_[i];
      if (std::find(passed.begin(), passed.end(), &seq) != passed.end()) continue;
      const Seconds waited = seq.waited + now - seq.queued_since;
      views.push_back({.order = seq.id, .level = aged_level(seq.request.priority, waited)});
      indices.push_back(i);
    }
    const int64_t next = next_in_queue(views);
    if (next < 0) return;
    const size_t head = indices[static_cast<size_t>(next)];
    if (std::ssize(passed) < kMostPassedOver && expects_prefix(*waiting_[head])) {
      passed.push_back(waiting_[head].get());
      continue;
    }
    while (!fits(*waiting_[head])) {
      // What is preempted goes to the end of the list: `head` stays where it is.
      if (!make_place(*waiting_[head])) return;
    }
    admit(head);
  }
}

int64_t EngineCore::lacking_pages(std::span<const int64_t> rows) const {
  int64_t pages = -available_pages();
  for (size_t i = 0; i < rows.size(); ++i) {
    const Sequence& seq = *running_[i];
    pages +=
        std::max<int64_t>(0, cache_->pages_for(seq.cache.length() + rows[i]) - seq.held_pages());
  }
  return pages;
}

// Rows of each running sequence, for which there are pages.
std::vector<int64_t> EngineCore::plan_step() {
  const StepLimits limits{.max_rows = limits_.batch.max_rows,
                          .prefill_rows = limits_.prefill_chunk,
                          .scored_rows = limits_.prompt_logprob_rows};
  for (;;) {
    std::vector<RunningView> views;
    std::vector<PlaceView> places;
    for (const auto& seq : running_) {
      views.push_back(
          {.order = seq->id,
           .level = seq->level,
           .pending = seq->pending(),
           .most = seq->stops.empty()
                       ? seq->pending()
                       : std::min(seq->pending(), seq->stops.front() - seq->cache.length()),
           .last_run = seq->last_run,
           .decodes = seq->decodes(),
           .scored = seq->scores_prompt()});
      places.push_back({.order = seq->id, .level = seq->level, .pages = seq->held_pages()});
    }
    std::vector<int64_t> rows = plan_rows(views, limits);
    if (lacking_pages(rows) <= 0) return rows;
    if (evict_idle_session(0)) continue;
    // One sequence alone always fits, so there is another to give way.
    preempt(static_cast<size_t>(choose_victim(places, std::numeric_limits<int64_t>::max())));
  }
}

}  // namespace dsv4
