#include "engine/engine_core.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <utility>

#include "base/str.h"

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
      prefix_(std::move(parts.prefix)),
      runner_(std::move(parts.runner)),
      clock_(std::move(parts.clock)),
      warm_up_(parts.warm_up),
      inbox_(limits_.cache.max_sequences, limits_.max_queue) {
  publish();
}

Result<std::unique_ptr<EngineCore>> EngineCore::make(const Model& model, const EngineLimits& limits,
                                                     Backend& backend, const OpTable& ops,
                                                     Hash128 identity,
                                                     const ProgressSink& progress) {
  Parts parts{.limits = limits,
              .vocab_size = model.config.vocab_size,
              .eos_token = static_cast<int32_t>(model.config.eos_token_id),
              .cache = nullptr,
              .prefix = nullptr,
              .runner = nullptr,
              .clock = steady_seconds};
  const CacheSpec spec = make_cache_spec(model.config, model.plan);
  DSV4_ASSIGN(parts.cache, KvCache::make(spec, limits.cache, backend));
  DSV4_ASSIGN(auto runner, Runner::make(model, *parts.cache, limits.batch, backend, ops));
  DSV4_ASSIGN(parts.warm_up, runner->warm_up(progress));
  parts.runner = std::move(runner);
  if (const PrefixCacheOptions& o = limits.prefix; o.enabled) {
    DSV4_ASSIGN(auto copier, StateCopier::make(spec, *parts.cache, backend));
    std::unique_ptr<DiskStore> disk;
    if (!o.disk_dir.empty()) {
      DSV4_ASSIGN(disk, DiskStore::open(o.disk_dir, identity));
    }
    parts.prefix = std::make_unique<PrefixIndex>(
        *parts.cache, std::move(copier),
        PrefixLimits{.host_bytes = o.host_bytes, .disk_bytes = o.disk_bytes}, std::move(disk));
  }
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
    Sequence& seq = *waiting_.emplace_back(std::make_unique<Sequence>());
    Request& r = m.request;
    seq.id = m.id;
    seq.sink = m.sink;
    seq.submitted = seq.queued_since = m.time;
    seq.context = r.max_context > 0 ? std::min(r.max_context, limits_.context) : limits_.context;
    seq.max_length = longest_length(r, seq.context);
    seq.seed = r.sampling.seed ? *r.sampling.seed : random_seed();
    seq.tokens = r.prompt;
    if (r.sampling.repetition_penalty != 1.0f) seq.history.add_prompt(seq.tokens);
    seq.usage.prompt_tokens = std::ssize(r.prompt);
    seq.usage.seed = seq.seed;
    seq.caches = prefix_ && r.use_prefix_cache;
    seq.request = std::move(r);
  }
  for (const SessionId id : mail_.closed) sessions_.erase(id);
  for (const RequestId id : mail_.cancelled) {
    for (auto* list : {&running_, &waiting_}) {
      for (const auto& seq : *list) seq->cancelled = seq->cancelled || seq->id == id;
    }
  }
}

void EngineCore::release(Sequence& seq, bool sound) {
  if (sound && seq.cache) leave_prefix(seq, seq.cache.length());
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
  } else if (seq.started_once()) {
    seq.usage.prefill_seconds = now - seq.started;
  }
  if (last_end_ >= 0) {
    constexpr double kSmooth = 0.2;
    const double interval = now - last_end_;
    end_interval_ += (end_interval_ > 0 ? kSmooth : 1.0) * (interval - end_interval_);
  }
  last_end_ = now;
  ++(reason == FinishReason::kCancelled ? stats_.cancelled : stats_.finished);
  release(seq, true);
  seq.ended = true;
  timed_sink([&] { seq.sink->on_finish(seq.id, reason, seq.usage); });
}

void EngineCore::fail(Sequence& seq, const Status& status) {
  ++stats_.failed;
  release(seq, false);
  seq.ended = true;
  timed_sink([&] { seq.sink->on_error(seq.id, status); });
}

template <class F>
void EngineCore::timed_sink(F&& call) {
  const Seconds begin = clock_();
  call();
  sink_seconds_ += clock_() - begin;
}

void EngineCore::drop_cancelled() {
  for (auto* list : {&running_, &waiting_}) {
    for (const auto& seq : *list) {
      if (seq->cancelled) finish(*seq, FinishReason::kCancelled);
    }
    std::erase_if(*list, [](const auto& seq) { return seq->ended; });
  }
}

// The row at position p gives the log probability of token p + 1. After a preemption rows run again
// whose tokens were told before.
void EngineCore::score_prompt(Sequence& seq, const LogitsView& logits, int64_t first_row,
                              int64_t rows) {
  const auto tell = [&](const SampledToken& s, bool known) {
    TokenEvent event{.token = s.token, .position = seq.prompt_scored++, .top = s.top};
    if (known) event.logprob = s.logprob;
    timed_sink([&] { seq.sink->on_prompt_token(seq.id, event); });
  };
  if (seq.prompt_scored == 0) tell({.token = seq.tokens[0]}, false);
  const int64_t first = seq.cache.length() - rows;
  for (int64_t i = 0; i < rows && seq.scores_prompt(); ++i) {
    if (first + i + 1 < seq.prompt_scored) continue;
    const int32_t token = seq.tokens[static_cast<size_t>(seq.prompt_scored)];
    const auto scored = sampler_.score(logits.row(first_row + i), token,
                                       seq.request.prompt_logprobs, seq.prompt_scored);
    if (!scored.ok()) return fail(seq, scored.status());
    tell(*scored, true);
  }
}

void EngineCore::tell_token(Sequence& seq, const NextToken& next) {
  TokenEvent event{.token = next.sampled.token,
                   .position = std::ssize(seq.tokens) - 1,
                   .logprob = std::nullopt,
                   .top = next.sampled.top,
                   .forced = next.forced};
  if (seq.request.sampling.logprobs >= 0) event.logprob = next.sampled.logprob;
  timed_sink([&] { seq.sink->on_token(seq.id, event); });
}

void EngineCore::advance(Sequence& seq, const SequenceRows& rows, const StepResult& results,
                         int64_t first_row) {
  if (const Status status = seq.cache.commit(std::ssize(rows.tokens)); !status.ok()) {
    return fail(seq, status);
  }
  if (!seq.stops.empty() && seq.stops.front() <= seq.cache.length()) {
    if (seq.stops.front() == seq.cache.length()) leave_prefix(seq, seq.cache.length());
    seq.stops.erase(seq.stops.begin());
  }
  if (seq.usage.completion_tokens == 0) {
    timed_sink([&] { seq.sink->on_prefill(seq.id, seq.cache.length(), seq.prompt()); });
  }
  const int64_t logit_rows = rows.logit_rows();
  if (seq.scores_prompt()) score_prompt(seq, results, first_row, logit_rows);
  if (seq.ended || seq.pending() > 0) return;
  // The same prompt again has to run its last token, and the next turn often differs from there.
  if (seq.usage.completion_tokens == 0) leave_prefix(seq, seq.cache.length() - 1);
  if (seq.request.max_tokens == 0) return finish(seq, FinishReason::kMaxTokens);

  const Seconds begin = clock_();
  const int64_t last = first_row + logit_rows - 1;
  auto next = results.has_token(last)
                  ? next_token(seq, results.tokens[static_cast<size_t>(last)])
                  : next_token(seq, results.row(last), sampler_);
  const Seconds end = clock_();
  sample_seconds_ += end - begin;
  if (!next.ok()) return fail(seq, next.status());
  if (seq.usage.completion_tokens == 1) seq.first_token = end;
  tell_token(seq, *next);
  if (const auto reason = end_reason(seq, eos_token_)) finish(seq, *reason);
}

Result<StepReport> EngineCore::run_batch() {
  StepReport report;
  const std::vector<int64_t> rows = plan_step();
  std::vector<SequenceRows> batch;
  std::vector<Sequence*> members;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] == 0) continue;
    Sequence& seq = *running_[i];
    const auto first = static_cast<size_t>(seq.cache.length());
    const LogitRows logits = seq.scores_prompt()        ? LogitRows::kAll
                             : rows[i] == seq.pending() ? LogitRows::kLast
                                                        : LogitRows::kNone;
    batch.push_back(
        {.cache = &seq.cache,
         .tokens =
             std::span<const int32_t>(seq.tokens).subspan(first, static_cast<size_t>(rows[i])),
         .logits = logits,
         .sample = wanted_sample(seq)});
    members.push_back(&seq);
  }
  if (batch.empty()) return report;

  ++stats_.steps;
  const Seconds begin = clock_();
  auto results = runner_->run(batch);
  stats_.forward_seconds += clock_() - begin;
  int64_t row = 0;
  for (size_t i = 0; i < members.size(); ++i) {
    Sequence& seq = *members[i];
    if (!results.ok()) {
      fail(seq, results.status());
      continue;
    }
    seq.last_run = stats_.steps;
    const std::ptrdiff_t n = std::ssize(batch[i].tokens);
    (seq.decodes() ? report.decode_rows : report.prefill_rows) += n;
    advance(seq, batch[i], *results, row);
    row += batch[i].logit_rows();
  }
  std::erase_if(running_, [](const auto& seq) { return seq->ended; });
  return report;
}

Result<StepReport> EngineCore::step() {
  const Seconds begin = clock_();
  const double forward_before = stats_.forward_seconds;
  sink_seconds_ = sample_seconds_ = 0;
  collect_mail();
  drop_cancelled();
  admit_waiting();
  DSV4_ASSIGN(StepReport report, run_batch());
  stats_.prefill_tokens += report.prefill_rows;
  stats_.decode_tokens += report.decode_rows;

  const double total = clock_() - begin;
  if (report.prefill_rows + report.decode_rows > 0) stats_.step_time.add(total);
  stats_.sink_seconds += sink_seconds_;
  stats_.sample_seconds += sample_seconds_;
  stats_.schedule_seconds +=
      total - (stats_.forward_seconds - forward_before) - sink_seconds_ - sample_seconds_;
  publish();
  report.running = std::ssize(running_);
  report.waiting = inbox_.stats().waiting;
  return report;
}

void EngineCore::publish() {
  stats_.running = std::ssize(running_);
  stats_.waiting = std::ssize(waiting_);
  // The queue has room again when one of those that run has ended.
  stats_.retry_after_seconds = end_interval_ > 0 ? end_interval_ : 1.0;
  stats_.free_pages = available_pages();
  if (prefix_) stats_.prefix = prefix_->stats();
  stats_.total_pages = cache_->total_pages();
  stats_.workspace_bytes = runner_->workspace_bytes();
  stats_.workspace_growths = runner_->workspace_growths();
  inbox_.publish(stats_);
}

}  // namespace dsv4
