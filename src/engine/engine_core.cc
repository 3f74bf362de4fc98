#include "engine/engine_core.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <utility>

#include "base/str.h"
#include "engine/next_token.h"
#include "engine/scheduler.h"

namespace dsv4 {
namespace {

Seconds steady_seconds() {
  return std::chrono::duration<Seconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

uint64_t random_seed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

// Longest a request's cache may become; the last token drawn is not run.
int64_t longest_length(const Request& r, int64_t context) {
  const std::ptrdiff_t prompt = std::ssize(r.prompt);
  if (r.max_tokens < 0) return context;
  return std::min(context, prompt + std::max<int64_t>(0, r.max_tokens - 1));
}

}  // namespace

EngineCore::EngineCore(Parts parts)
    : limits_(parts.limits),
      vocab_size_(parts.vocab_size),
      eos_token_(parts.eos_token),
      cache_(std::move(parts.cache)),
      runner_(std::move(parts.runner)),
      clock_(std::move(parts.clock)),
      inbox_(limits_.cache.max_sequences, limits_.max_queue) {
  publish();
}

Result<std::unique_ptr<EngineCore>> EngineCore::make(const Model& model, const EngineLimits& limits,
                                                     Backend& backend, const OpTable& ops) {
  Parts parts{.limits = limits,
              .vocab_size = model.config.vocab_size,
              .eos_token = static_cast<int32_t>(model.config.eos_token_id),
              .cache = nullptr,
              .runner = nullptr,
              .clock = steady_seconds};
  DSV4_ASSIGN(parts.cache,
              KvCache::make(make_cache_spec(model.config, model.plan), limits.cache, backend));
  DSV4_ASSIGN(parts.runner, Runner::make(model, *parts.cache, limits.batch, backend, ops));
  return std::make_unique<EngineCore>(std::move(parts));
}

Result<RequestId> EngineCore::submit(Request request, EventSink& sink) {
  DSV4_TRY(check_request(request, vocab_size_));
  const int64_t context =
      request.max_context > 0 ? std::min(request.max_context, limits_.context) : limits_.context;
  if (std::ssize(request.prompt) > context) {
    return Status(Code::kTooLong, cat("request: the prompt has ", request.prompt.size(),
                                      " tokens, the context holds ", context,
                                      "; use a larger context or a shorter prompt"));
  }
  // Immutable parts of the cache only: this is any thread.
  const int64_t length = longest_length(request, context);
  if (cache_->pages_for(length) > cache_->total_pages()) {
    return Status(Code::kTooLong, cat("request: may grow to ", length, " tokens, the cache holds ",
                                      cache_->total_pages() * cache_->span(),
                                      "; lower max_tokens or give the cache more tokens"));
  }
  if (request.prompt_logprobs >= 0 && limits_.prompt_logprob_rows == 0) {
    return Status(Code::kUnsupported,
                  "request: prompt_logprobs: this engine was loaded with prompt_logprob_rows 0");
  }
  return inbox_.submit(std::move(request), sink, clock_());
}

void EngineCore::collect_mail() {
  inbox_.collect(mail_);
  for (Inbox::Submitted& m : mail_.requests) {
    Sequence& seq = waiting_.emplace_back();
    Request& r = m.request;
    seq.id = m.id;
    seq.sink = m.sink;
    seq.submitted = m.time;
    seq.context = r.max_context > 0 ? std::min(r.max_context, limits_.context) : limits_.context;
    seq.max_length = longest_length(r, seq.context);
    seq.seed = r.sampling.seed ? *r.sampling.seed : random_seed();
    seq.tokens = r.prompt;
    if (r.sampling.repetition_penalty != 1.0f) seq.history.add_prompt(seq.tokens);
    seq.usage.prompt_tokens = std::ssize(r.prompt);
    seq.usage.seed = seq.seed;
    seq.request = std::move(r);
  }
  for (const SessionId id : mail_.closed) sessions_.erase(id);
  for (const RequestId id : mail_.cancelled) {
    for (auto* list : {&running_, &waiting_}) {
      for (Sequence& seq : *list) seq.cancelled = seq.cancelled || seq.id == id;
    }
  }
}

int64_t EngineCore::free_pages() const {
  int64_t pages = cache_->free_pages();
  for (const Sequence& seq : running_) {
    const auto held = static_cast<int64_t>(seq.cache.pages().size());
    pages -= std::max<int64_t>(0, cache_->pages_for(seq.max_length) - held);
  }
  return pages;
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

void EngineCore::reuse_session(Sequence& seq) {
  if (seq.request.session == 0) return;
  Session& session = sessions_[seq.request.session];
  if (!session.cache) return;
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

void EngineCore::admit_waiting() {
  while (!waiting_.empty()) {
    Sequence& seq = waiting_.front();
    Session* const session = seq.request.session != 0 ? &sessions_[seq.request.session] : nullptr;
    const bool has_cache = session && session->cache;
    const int64_t held = has_cache ? static_cast<int64_t>(session->cache.pages().size()) : 0;
    const int64_t pages = cache_->pages_for(seq.max_length) - held;
    if (pages > free_pages() || (!has_cache && cache_->free_slots() == 0)) {
      if (evict_idle_session(seq.request.session)) continue;
      return;
    }
    reuse_session(seq);
    if (!seq.cache) {
      auto opened = cache_->open();
      if (!opened.ok()) return;  // there is a free slot, see above
      seq.cache = std::move(opened).value();
    }
    seq.started = clock_();
    seq.usage.queue_seconds = seq.started - seq.submitted;
    running_.push_back(std::move(seq));
    waiting_.pop_front();
  }
}

void EngineCore::release(Sequence& seq, bool sound) {
  const SessionId id = seq.request.session;
  if (inbox_.ended(seq.id, id)) {
    sessions_.erase(id);
  } else if (id != 0) {
    Session& session = sessions_[id];
    session.last_used = stats_.steps;
    if (sound && seq.cache) {
      session.tokens.assign(seq.tokens.begin(), seq.tokens.begin() + seq.cache.length());
      session.cache = std::move(seq.cache);
    }
  }
  seq.cache.free();
}

void EngineCore::finish(Sequence& seq, FinishReason reason) {
  const Seconds now = clock_();
  if (seq.usage.completion_tokens > 0) {
    seq.usage.prefill_seconds = seq.first_token - seq.started;
    seq.usage.decode_seconds = now - seq.first_token;
  } else if (seq.started >= 0) {
    seq.usage.prefill_seconds = now - seq.started;
  }
  ++(reason == FinishReason::kCancelled ? stats_.cancelled : stats_.finished);
  release(seq, true);
  seq.ended = true;
  seq.sink->on_finish(seq.id, reason, seq.usage);
}

void EngineCore::fail(Sequence& seq, const Status& status) {
  ++stats_.failed;
  release(seq, false);
  seq.ended = true;
  seq.sink->on_error(seq.id, status);
}

void EngineCore::drop_cancelled() {
  for (auto* list : {&running_, &waiting_}) {
    for (Sequence& seq : *list) {
      if (seq.cancelled) finish(seq, FinishReason::kCancelled);
    }
    std::erase_if(*list, [](const Sequence& seq) { return seq.ended; });
  }
}

// Row i of the prompt gives the log probability of token i + 1.
void EngineCore::score_prompt(Sequence& seq, const LogitsView& logits, int64_t first_row,
                              int64_t rows) {
  const auto tell = [&seq](const SampledToken& s, bool known) {
    TokenEvent event{.token = s.token, .position = seq.prompt_scored++, .top = s.top};
    if (known) event.logprob = s.logprob;
    seq.sink->on_prompt_token(seq.id, event);
  };
  if (seq.prompt_scored == 0) tell({.token = seq.tokens[0]}, false);
  for (int64_t i = 0; i < rows && seq.scores_prompt(); ++i) {
    const int32_t token = seq.tokens[static_cast<size_t>(seq.prompt_scored)];
    const auto scored = sampler_.score(logits.row(first_row + i), token,
                                       seq.request.prompt_logprobs, seq.prompt_scored);
    if (!scored.ok()) return fail(seq, scored.status());
    tell(*scored, true);
  }
}

void EngineCore::advance(Sequence& seq, std::span<const int32_t> rows, const LogitsView& logits,
                         int64_t first_row, int64_t logit_rows) {
  if (const Status status = seq.cache.commit(std::ssize(rows)); !status.ok()) {
    return fail(seq, status);
  }
  if (seq.usage.completion_tokens == 0) {
    seq.sink->on_prefill(seq.id, seq.cache.length(), seq.prompt());
  }
  if (seq.scores_prompt()) score_prompt(seq, logits, first_row, logit_rows);
  if (seq.ended || seq.pending() > 0) return;
  if (seq.request.max_tokens == 0) return finish(seq, FinishReason::kMaxTokens);

  auto next = next_token(seq, logits.row(first_row + logit_rows - 1), sampler_);
  if (!next.ok()) return fail(seq, next.status());
  if (seq.usage.completion_tokens == 1) seq.first_token = clock_();
  const SampledToken& drawn = next->sampled;
  TokenEvent event{.token = drawn.token,
                   .position = std::ssize(seq.tokens) - 1,
                   .logprob = std::nullopt,
                   .top = drawn.top,
                   .forced = next->forced};
  if (seq.request.sampling.logprobs >= 0) event.logprob = drawn.logprob;
  seq.sink->on_token(seq.id, event);
  if (const auto reason = end_reason(seq, eos_token_)) finish(seq, *reason);
}

Result<StepReport> EngineCore::run_batch() {
  StepReport report;
  std::vector<int64_t> pending;
  for (const Sequence& seq : running_) {
    // A prompt that is scored needs room for the logits of its rows.
    pending.push_back(seq.scores_prompt() ? std::min(seq.pending(), limits_.prompt_logprob_rows)
                                          : seq.pending());
  }
  const std::vector<int64_t> rows =
      plan_step(pending, limits_.prefill_chunk, limits_.batch.max_rows);
  std::vector<SequenceRows> batch;
  std::vector<Sequence*> members;
  bool scoring = false;
  for (size_t i = 0; i < rows.size(); ++i) {
    Sequence& seq = running_[i];
    if (rows[i] == 0 || (scoring && seq.scores_prompt())) continue;
    scoring = scoring || seq.scores_prompt();
    const auto first = static_cast<size_t>(seq.cache.length());
    const LogitRows logits = seq.scores_prompt()        ? LogitRows::kAll
                             : rows[i] == seq.pending() ? LogitRows::kLast
                                                        : LogitRows::kNone;
    batch.push_back(
        {.cache = &seq.cache,
         .tokens =
             std::span<const int32_t>(seq.tokens).subspan(first, static_cast<size_t>(rows[i])),
         .logits = logits});
    members.push_back(&seq);
  }
  if (batch.empty()) return report;

  ++stats_.steps;
  auto logits = runner_->run(batch);
  int64_t row = 0;
  for (size_t i = 0; i < members.size(); ++i) {
    Sequence& seq = *members[i];
    if (!logits.ok()) {
      fail(seq, logits.status());
      continue;
    }
    const std::ptrdiff_t n = std::ssize(batch[i].tokens);
    (seq.usage.completion_tokens > 0 ? report.decode_rows : report.prefill_rows) += n;
    const int64_t logit_rows = batch[i].logits == LogitRows::kAll    ? n
                               : batch[i].logits == LogitRows::kLast ? 1
                                                                     : 0;
    advance(seq, batch[i].tokens, *logits, row, logit_rows);
    row += logit_rows;
  }
  std::erase_if(running_, [](const Sequence& seq) { return seq.ended; });
  return report;
}

Result<StepReport> EngineCore::step() {
  collect_mail();
  drop_cancelled();
  admit_waiting();
  DSV4_ASSIGN(StepReport report, run_batch());
  stats_.prefill_tokens += report.prefill_rows;
  stats_.decode_tokens += report.decode_rows;
  publish();
  report.running = std::ssize(running_);
  report.waiting = inbox_.stats().waiting;
  return report;
}

void EngineCore::publish() {
  stats_.running = std::ssize(running_);
  stats_.waiting = std::ssize(waiting_);
  stats_.free_pages = cache_->free_pages();
  stats_.total_pages = cache_->total_pages();
  stats_.workspace_bytes = runner_->workspace_bytes();
  stats_.workspace_growths = runner_->workspace_growths();
  inbox_.publish(stats_);
}

}  // namespace dsv4
