#include "engine/engine_core.h"

#include <algorithm>
#include <random>
#include <utility>

#include "base/str.h"
#include "engine/scheduler.h"

namespace dsv4 {
namespace {

double seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

uint64_t random_seed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

}  // namespace

EngineCore::EngineCore(const Model& model, const EngineLimits& limits,
                       std::unique_ptr<KvCache> cache, std::unique_ptr<Runner> runner)
    : model_(model), limits_(limits), cache_(std::move(cache)), runner_(std::move(runner)) {}

Result<std::unique_ptr<EngineCore>> EngineCore::make(const Model& model, const EngineLimits& limits,
                                                     Backend& backend, const OpTable& ops) {
  DSV4_ASSIGN(auto cache,
              KvCache::make(make_cache_spec(model.config, model.plan), limits.cache, backend));
  DSV4_ASSIGN(auto runner, Runner::make(model, *cache, limits.batch, backend, ops));
  return std::unique_ptr<EngineCore>(
      new EngineCore(model, limits, std::move(cache), std::move(runner)));
}

Status EngineCore::check_request(const Request& r) const {
  const int64_t vocab = model_.config.vocab_size;
  if (r.prompt.empty()) {
    return Status(Code::kInvalidArgument, "request: the prompt has no tokens; send at least one");
  }
  DSV4_TRY(check_tokens(r.prompt, vocab).with_context("prompt"));
  DSV4_TRY(check_tokens(r.stop_tokens, vocab).with_context("stop_tokens"));
  DSV4_TRY(validate_sampling(r.sampling, vocab));
  if (r.max_tokens < -1 || r.max_tokens == 0) {
    return Status(Code::kInvalidArgument,
                  cat("request: max_tokens ", r.max_tokens, ": expected > 0, or -1 for no limit"));
  }
  if (std::ssize(r.prompt) > limits_.context) {
    return Status(Code::kInvalidArgument,
                  cat("request: the prompt has ", r.prompt.size(), " tokens, the context holds ",
                      limits_.context, "; use a larger context or a shorter prompt"));
  }
  if (r.session != 0) {
    const auto it = sessions_.find(r.session);
    if (it == sessions_.end() || it->second.closed) {
      return Status(Code::kInvalidArgument, cat("request: session ", r.session, " is not open"));
    }
    if (it->second.busy) {
      return Status(Code::kInvalidArgument,
                    cat("request: session ", r.session, " still has a request; wait for its end"));
    }
  }
  return {};
}

Result<RequestId> EngineCore::submit(Request request, EventSink& sink) {
  DSV4_TRY(check_request(request));
  Sequence seq;
  const std::ptrdiff_t prompt = std::ssize(request.prompt);
  // The last token drawn is not run, so n tokens need n - 1 places behind the prompt.
  const int64_t room = limits_.context - prompt;
  seq.max_length =
      prompt + (request.max_tokens < 0 ? room : std::min(room, request.max_tokens - 1));
  if (cache_->pages_for(seq.max_length) > cache_->total_pages()) {
    return Status(Code::kResourceExhausted,
                  cat("request: may grow to ", seq.max_length, " tokens, the cache holds ",
                      cache_->total_pages() * cache_->span(),
                      "; lower max_tokens or give the cache more tokens"));
  }
  seq.id = next_request_++;
  seq.sink = &sink;
  seq.seed = request.sampling.seed ? *request.sampling.seed : random_seed();
  seq.tokens = request.prompt;
  seq.history.add_prompt(seq.tokens);
  seq.usage.prompt_tokens = prompt;
  seq.usage.seed = seq.seed;
  if (request.session != 0) sessions_[request.session].busy = true;
  seq.request = std::move(request);
  const RequestId id = seq.id;
  waiting_.push_back(std::move(seq));
  return id;
}

Status EngineCore::cancel(RequestId id) {
  for (auto* list : {&running_, &waiting_}) {
    for (Sequence& seq : *list) {
      if (seq.id != id) continue;
      seq.cancelled = true;
      return {};
    }
  }
  return Status(Code::kNotFound, cat("cancel: request ", id, " has ended or never was"));
}

SessionId EngineCore::open_session() {
  sessions_[next_session_].last_used = stats_.steps;
  return next_session_++;
}

Status EngineCore::close_session(SessionId id) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end() || it->second.closed) {
    return Status(Code::kInvalidArgument, cat("session ", id, " is not open"));
  }
  if (it->second.busy) {
    it->second.closed = true;
  } else {
    sessions_.erase(it);
  }
  return {};
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
  // The last token of the prompt has to run in any case: its logits are what is asked for.
  const int64_t common = std::min<int64_t>(ours - seq.tokens.begin(), std::ssize(seq.tokens) - 1);
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
    seq.started = Clock::now();
    running_.push_back(std::move(seq));
    waiting_.pop_front();
  }
}

void EngineCore::release(Sequence& seq, bool sound) {
  if (seq.request.session != 0) {
    const auto it = sessions_.find(seq.request.session);
    Session& session = it->second;
    session.busy = false;
    session.last_used = stats_.steps;
    if (session.closed) {
      sessions_.erase(it);
    } else if (sound && seq.cache) {
      session.tokens.assign(seq.tokens.begin(), seq.tokens.begin() + seq.cache.length());
      session.cache = std::move(seq.cache);
    }
  }
  seq.cache.free();
}

void EngineCore::finish(Sequence& seq, FinishReason reason) {
  const auto now = Clock::now();
  if (seq.usage.completion_tokens > 0) {
    seq.usage.prefill_seconds = seconds(seq.first_token - seq.started);
    seq.usage.decode_seconds = seconds(now - seq.first_token);
  } else if (seq.cache) {  // it had begun
    seq.usage.prefill_seconds = seconds(now - seq.started);
  }
  release(seq, true);
  seq.ended = true;
  seq.sink->on_finish(seq.id, reason, seq.usage);
}

void EngineCore::fail(Sequence& seq, const Status& status) {
  release(seq, false);
  seq.ended = true;
  seq.sink->on_error(seq.id, status);
}

void EngineCore::drop_cancelled() {
  for (auto* list : {&running_, &waiting_}) {
    // By index: a sink may submit from inside its callback.
    for (size_t i = 0; i < list->size(); ++i) {
      if ((*list)[i].cancelled) finish((*list)[i], FinishReason::kCancelled);
    }
    std::erase_if(*list, [](const Sequence& seq) { return seq.ended; });
  }
}

void EngineCore::advance(Sequence& seq, std::span<const float> logits) {
  const std::ptrdiff_t position = std::ssize(seq.tokens);
  auto sampled = sampler_.sample(logits, seq.request.sampling, seq.history, seq.seed, position);
  if (!sampled.ok()) return fail(seq, sampled.status());
  if (seq.usage.completion_tokens == 0) seq.first_token = Clock::now();
  const int32_t token = sampled->token;
  ++seq.usage.completion_tokens;
  seq.tokens.push_back(token);
  seq.history.add_generated(token);

  TokenEvent event{
      .token = token, .position = position, .logprob = std::nullopt, .top = sampled->top};
  if (seq.request.sampling.logprobs >= 0) event.logprob = sampled->logprob;
  seq.sink->on_token(seq.id, event);

  const auto& stops = seq.request.stop_tokens;
  const Request& request = seq.request;
  if (!request.ignore_eos && token == model_.config.eos_token_id) {
    finish(seq, FinishReason::kEos);
  } else if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
    finish(seq, FinishReason::kStopToken);
  } else if (seq.usage.completion_tokens == request.max_tokens) {
    finish(seq, FinishReason::kMaxTokens);
  } else if (std::ssize(seq.tokens) > limits_.context) {
    finish(seq, FinishReason::kContext);
  }
}

Result<StepReport> EngineCore::step() {
  StepReport report;
  drop_cancelled();
  admit_waiting();

  std::vector<int64_t> pending;
  for (const Sequence& seq : running_) pending.push_back(seq.pending());
  const std::vector<int64_t> rows =
      plan_step(pending, limits_.prefill_chunk, limits_.batch.max_rows);
  std::vector<SequenceRows> batch;
  std::vector<Sequence*> members;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] == 0) continue;
    Sequence& seq = running_[i];
    const auto first = static_cast<size_t>(seq.cache.length());
    const bool last = rows[i] == pending[i];
    batch.push_back(
        {.cache = &seq.cache,
         .tokens =
             std::span<const int32_t>(seq.tokens).subspan(first, static_cast<size_t>(rows[i])),
         .logits = last ? LogitRows::kLast : LogitRows::kNone});
    members.push_back(&seq);
  }

  if (!batch.empty()) {
    ++stats_.steps;
    auto logits = runner_->run(batch);
    int64_t row = 0;
    for (size_t i = 0; i < members.size(); ++i) {
      Sequence& seq = *members[i];
      const std::ptrdiff_t n = std::ssize(batch[i].tokens);
      const Status status = logits.ok() ? seq.cache.commit(n) : logits.status();
      if (!status.ok()) {
        fail(seq, status);
        continue;
      }
      const bool decode = seq.usage.completion_tokens > 0;
      (decode ? report.decode_rows : report.prefill_rows) += n;
      if (!decode) seq.sink->on_prefill(seq.id, seq.cache.length(), seq.usage.prompt_tokens);
      if (batch[i].logits == LogitRows::kLast) advance(seq, logits->row(row++));
    }
    std::erase_if(running_, [](const Sequence& seq) { return seq.ended; });
  }
  stats_.prefill_tokens += report.prefill_rows;
  stats_.decode_tokens += report.decode_rows;
  report.running = std::ssize(running_);
  report.waiting = std::ssize(waiting_);
  return report;
}

EngineStats EngineCore::stats() const {
  EngineStats s = stats_;
  s.running = std::ssize(running_);
  s.waiting = std::ssize(waiting_);
  s.sessions = std::ssize(sessions_);
  s.free_pages = cache_->free_pages();
  s.total_pages = cache_->total_pages();
  s.workspace_bytes = runner_->workspace().bytes();
  s.workspace_growths = runner_->workspace().growths();
  return s;
}

}  // namespace dsv4
