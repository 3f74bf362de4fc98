// Generation: one answer in the making. The engine's thread leaves tokens in its inbox; the I/O
// thread of the connection turns them to text, splits off reasoning and tool calls, looks for stop
// strings, and hands what is new to the endpoint.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "dsv4/types.h"
#include "server/app.h"
#include "server/http.h"
#include "text/chat.h"
#include "text/stop_filter.h"
#include "text/stream_parser.h"
#include "text/tokenizer.h"

namespace dsv4::server {

struct GenerationSpec {
  Request request;
  // How the completion is read; nullopt: plain text.
  std::optional<chat::ThinkingMode> mode;
  std::vector<std::string> stops;  // looked for in the content only
  ConstraintMaker::Factory constraint;
};

struct TokenInfo {
  int32_t token = 0;
  std::optional<float> logprob;
  std::vector<TokenLogprob> top;
  std::chrono::steady_clock::time_point at;  // when it was drawn
};

// What became known since the last delta.
struct Delta {
  std::vector<chat::StreamEvent> events;
  std::vector<TokenInfo> tokens;  // of the content, where log probabilities were asked for
  std::vector<TokenInfo> prompt_tokens;  // where theirs were asked for; before everything else
  int64_t prompt_done = 0, prompt_total = 0;  // tokens of the prompt that ran; 0 = nothing new
  bool has_answer() const { return !events.empty() || !tokens.empty() || !prompt_tokens.empty(); }
};

enum class StopReason { kEnd, kStopString, kLength, kToolCalls, kCancelled };

struct Outcome {
  StopReason reason = StopReason::kEnd;
  std::string stop_string;  // the one found
  chat::AssistantMessage message;
  std::vector<TokenInfo> tokens, prompt_logprobs;  // as in Delta, all of them
  int64_t prompt_tokens = 0, cached_tokens = 0;
  int64_t completion_tokens = 0;  // up to the end that the client sees
  int64_t reasoning_tokens = 0;   // of these
};

class Generation final : public EventSink, public std::enable_shared_from_this<Generation> {
 public:
  using OnDelta = std::function<void(const Delta&)>;
  using OnDone = std::function<void(const Result<Outcome>&)>;

  // Submits the request. The callbacks run on the I/O thread of `exchange`, on_done last and once.
  // An error here is one of the request, and nothing is called.
  static Result<std::shared_ptr<Generation>> start(App& app, std::shared_ptr<Exchange> exchange,
                                                   GenerationSpec spec, OnDelta on_delta,
                                                   OnDone on_done);
  // The answer is not wanted any more; no callback follows. On the I/O thread.
  void abandon();

 private:
  using Clock = std::chrono::steady_clock;

  struct Arrival {
    std::vector<TokenInfo> tokens, prompt_tokens;
    int64_t prompt_done = 0, prompt_total = 0;
    std::optional<FinishReason> finish;
    Usage usage;
    Status error;
  };

  Generation(App& app, std::shared_ptr<Exchange> exchange, GenerationSpec spec, OnDelta on_delta,
             OnDone on_done);

  // On the engine's thread.
  void on_prefill(RequestId id, int64_t done, int64_t total) noexcept override;
  void on_prompt_token(RequestId id, const TokenEvent& event) noexcept override;
  void on_token(RequestId id, const TokenEvent& event) noexcept override;
  void on_finish(RequestId id, FinishReason reason, const Usage& usage) noexcept override;
  void on_error(RequestId id, const Status& status) noexcept override;
  template <class F>
  void leave(F&& change) noexcept;

  // On the I/O thread.
  void drain();
  void token(const TokenInfo& info);
  void read(std::string_view text);
  void deliver(chat::StreamEvent event);
  void finish(const Arrival& arrival);
  void done(const Result<Outcome>& outcome);

  App& app_;
  const std::shared_ptr<Exchange> exchange_;
  GenerationSpec spec_;
  OnDelta on_delta_;
  OnDone on_done_;
  RequestId id_ = 0;
  std::shared_ptr<Generation> self_;  // while the engine knows this sink

  std::mutex mutex_;
  Arrival inbox_;            // guarded by mutex_
  bool drain_posted_ = false;  // guarded by mutex_

  Detokenizer detokenizer_;
  std::optional<chat::StreamParser> parser_;
  StopFilter stop_filter_;
  std::vector<chat::StreamEvent> parsed_;
  Delta delta_;
  Outcome outcome_;
  bool ended_ = false;    // for the endpoint: nothing that arrives later counts
  bool stopped_ = false;  // a stop string was found; what the engine still says counts in usage only
  bool reasoning_ = false;
  Clock::time_point submitted_, last_token_;
};

}  // namespace dsv4::server
