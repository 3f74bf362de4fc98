#include "server/generation.h"

#include <algorithm>
#include <utility>

#include "text/chat_format.h"

namespace dsv4::server {

using chat::StreamEvent;

Generation::Generation(App& app, std::shared_ptr<Exchange> exchange, GenerationSpec spec,
                       OnDelta on_delta, OnDone on_done)
    : app_(app),
      exchange_(std::move(exchange)),
      spec_(std::move(spec)),
      on_delta_(std::move(on_delta)),
      on_done_(std::move(on_done)),
      detokenizer_(app.tokenizer),
      stop_filter_(spec_.stops),
      reasoning_(spec_.mode == chat::ThinkingMode::kThinking),
      submitted_(Clock::now()) {
  if (spec_.mode) parser_.emplace(*spec_.mode);
}

Result<std::shared_ptr<Generation>> Generation::start(App& app, std::shared_ptr<Exchange> exchange,
                                                      GenerationSpec spec, OnDelta on_delta,
                                                      OnDone on_done) {
  const std::shared_ptr<Generation> made(new Generation(
      app, std::move(exchange), std::move(spec), std::move(on_delta), std::move(on_done)));
  made->self_ = made;
  if (made->spec_.constraint) made->spec_.request.constraint = made->spec_.constraint();
  auto id = app.engine.submit(std::move(made->spec_.request), *made);
  if (!id.ok()) {
    made->self_ = nullptr;
    return id.status();
  }
  made->id_ = *id;
  app.metrics.request_started();
  return made;
}

void Generation::abandon() {
  if (ended_) return;
  ended_ = true;
  on_delta_ = nullptr;
  on_done_ = nullptr;
  app_.engine.cancel(id_);
  app_.metrics.request_ended("abandoned");
}

template <class F>
void Generation::leave(F&& change) noexcept {
  bool post = false;
  {
    const std::lock_guard lock(mutex_);
    change(inbox_);
    post = !std::exchange(drain_posted_, true);
  }
  if (post) exchange_->post([self = shared_from_this()] { self->drain(); });
}

void Generation::on_prefill(RequestId, int64_t done, int64_t total) noexcept {
  leave([&](Arrival& a) {
    a.prompt_done = done;
    a.prompt_total = total;
  });
}

void Generation::on_prompt_token(RequestId, const TokenEvent& event) noexcept {
  leave([&](Arrival& a) {
    a.prompt_tokens.push_back(
        {event.token, event.logprob, {event.top.begin(), event.top.end()}, Clock::now()});
  });
}

void Generation::on_token(RequestId, const TokenEvent& event) noexcept {
  leave([&](Arrival& a) {
    a.tokens.push_back(
        {event.token, event.logprob, {event.top.begin(), event.top.end()}, Clock::now()});
  });
}

void Generation::on_finish(RequestId, FinishReason reason, const Usage& usage) noexcept {
  if (!app_.engine.ended(*this)) return;
  const auto self = std::move(self_);  // the engine lets go of this sink
  leave([&](Arrival& a) {
    a.finish = reason;
    a.usage = usage;
  });
}

void Generation::on_error(RequestId, const Status& status) noexcept {
  if (!app_.engine.ended(*this)) return;
  const auto self = std::move(self_);
  leave([&](Arrival& a) { a.error = status; });
}

void Generation::drain() {
  Arrival arrival;
  {
    const std::lock_guard lock(mutex_);
    arrival = std::exchange(inbox_, {});
    drain_posted_ = false;
  }
  outcome_.prompt_logprobs.insert(outcome_.prompt_logprobs.end(), arrival.prompt_tokens.begin(),
                                  arrival.prompt_tokens.end());
  delta_.prompt_tokens = std::move(arrival.prompt_tokens);
  delta_.prompt_done = arrival.prompt_done;
  delta_.prompt_total = arrival.prompt_total;
  for (const TokenInfo& info : arrival.tokens) {
    if (ended_ || stopped_) break;
    token(info);
  }
  if (!ended_ && (arrival.finish || !arrival.error.ok())) {
    finish(arrival);
  } else if (!ended_ && on_delta_ && (delta_.has_answer() || delta_.prompt_done > 0)) {
    on_delta_(delta_);
  }
  delta_ = {};
}

void Generation::token(const TokenInfo& info) {
  if (outcome_.completion_tokens == 0) {
    app_.metrics.first_token(info.at - submitted_);
  } else {
    app_.metrics.next_token(info.at - last_token_);
  }
  last_token_ = info.at;
  ++outcome_.completion_tokens;
  const bool is_end = info.token == app_.engine.info().eos_token;
  if (reasoning_) ++outcome_.reasoning_tokens;
  if (!reasoning_ && !is_end && info.logprob) {
    delta_.tokens.push_back(info);
    outcome_.tokens.push_back(info);
  }
  if (is_end) return;
  auto text = detokenizer_.push(info.token);
  if (!text.ok()) return done(text.status());
  read(*text);
}

void Generation::read(std::string_view text) {
  if (!parser_) return deliver({StreamEvent::Kind::kContent, std::string(text)});
  parser_->feed(text, parsed_);
  for (StreamEvent& event : parsed_) deliver(std::move(event));
  parsed_.clear();
  reasoning_ = parser_->in_reasoning();
}

void Generation::deliver(StreamEvent event) {
  if (stopped_) return;
  if (event.kind == StreamEvent::Kind::kContent) {
    event.text = stop_filter_.push(event.text);
    outcome_.message.content += event.text;
    if (!event.text.empty()) delta_.events.push_back(std::move(event));
    if (!stop_filter_.found()) return;
    // The engine's last word brings the usage.
    stopped_ = true;
    outcome_.stop_string = stop_filter_.found_string();
    app_.engine.cancel(id_);
    return;
  }
  if (event.kind == StreamEvent::Kind::kReasoning) {
    outcome_.message.reasoning_content += event.text;
  } else {
    // Text that was held back as the possible start of a stop string comes before the calls.
    if (std::string held = stop_filter_.finish(); !held.empty()) {
      outcome_.message.content += held;
      delta_.events.push_back({StreamEvent::Kind::kContent, std::move(held)});
    }
    if (event.kind == StreamEvent::Kind::kToolCallBegin) {
      outcome_.message.tool_calls.push_back({event.text, {}});
    } else {
      outcome_.message.tool_calls[event.index].arguments += event.text;
    }
  }
  delta_.events.push_back(std::move(event));
}

void Generation::finish(const Arrival& arrival) {
  if (!arrival.error.ok()) return done(arrival.error);
  if (!stopped_) read(detokenizer_.finish());
  if (parser_ && !stopped_) {
    if (arrival.finish == FinishReason::kEos) parser_->feed(chat::kEos, parsed_);
    // What was cut off, or left the format, is what could be read of it.
    (void)parser_->finish(parsed_);
    for (StreamEvent& event : parsed_) deliver(std::move(event));
    parsed_.clear();
  }
  if (std::string held = stop_filter_.finish(); !held.empty()) {
    outcome_.message.content += held;
    delta_.events.push_back({StreamEvent::Kind::kContent, std::move(held)});
  }
  outcome_.prompt_tokens = arrival.usage.prompt_tokens;
  outcome_.cached_tokens = arrival.usage.cached_tokens;
  switch (stopped_ ? FinishReason::kStopToken : *arrival.finish) {
    case FinishReason::kEos:
    case FinishReason::kStopToken:
      outcome_.reason = stopped_                               ? StopReason::kStopString
                        : outcome_.message.tool_calls.empty() ? StopReason::kEnd
                                                               : StopReason::kToolCalls;
      break;
    case FinishReason::kMaxTokens:
    case FinishReason::kContext:
      outcome_.reason = StopReason::kLength;
      break;
    case FinishReason::kCancelled:
      outcome_.reason = StopReason::kCancelled;
      break;
  }
  Outcome outcome = std::move(outcome_);
  done(std::move(outcome));
}

void Generation::done(const Result<Outcome>& outcome) {
  if (std::exchange(ended_, true)) return;
  app_.metrics.request_ended(!outcome.ok() ? "error"
                             : outcome->reason == StopReason::kLength ? "length"
                             : outcome->reason == StopReason::kCancelled ? "cancelled"
                             : outcome->reason == StopReason::kToolCalls ? "tool_calls"
                                                                          : "stop");
  const auto on_delta = std::exchange(on_delta_, nullptr);
  const auto on_done = std::exchange(on_done_, nullptr);
  if (on_delta && delta_.has_answer()) on_delta(delta_);
  if (on_done) on_done(outcome);
}

}  // namespace dsv4::server
