// Engine: a loaded model that answers requests. Three verbs: submit, step until idle, read events.
//
//   dsv4::EngineOptions options;
//   options.model_dir = "models/flash";
//   auto engine = dsv4::Engine::load(options);
//   if (!engine.ok()) return report(engine.status());
//   (*engine)->submit(request, sink);
//   for (;;) { auto r = (*engine)->step(); if (!r.ok() || r->idle()) break; }
//
// A program that serves gives the engine a thread of its own instead:
//
//   std::jthread thread([&](std::stop_token stop) { failure = engine->run(stop); });
//
// Threads: submit, cancel, stats and the sessions' functions may be called from any thread at any
// time, also from inside a sink; step and run from one thread at a time. Sinks are called on that
// thread. No function throws.
#pragma once

#include <memory>
#include <stop_token>
#include <string_view>
#include <vector>

#include "dsv4/types.h"

namespace dsv4 {

class Engine {
 public:
  // Sizes only: reads headers and config, allocates nothing.
  static Result<MemoryPlan> plan(const EngineOptions& options);
  static Result<std::unique_ptr<Engine>> load(const EngineOptions& options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const ModelInfo& info() const;

  // Checks the request and queues it; `sink` must live until its on_finish or on_error.
  //   kInvalidArgument  the request has no meaning; the message names the field
  //   kTooLong          it can never fit: prompt longer than the context, or than the cache
  //   kUnavailable      the queue is full; stats().retry_after_seconds says when to come back
  Result<RequestId> submit(Request request, EventSink& sink);
  // Ends a request before its next token, with FinishReason::kCancelled from the next step().
  Status cancel(RequestId id);
  // Schedules, runs one batch, delivers its tokens. An error here is one of the whole engine; what
  // concerns one request goes to its sink.
  Result<StepReport> step();
  // Steps while there is work and sleeps while there is none, until `stop` is requested; then it
  // returns after the step that runs. Requests still there stay where they are: to let them end,
  // stop submitting and wait until stats() shows none running and none waiting.
  Status run(std::stop_token stop);
  // A copy from the end of the last step.
  EngineStats stats() const;

  // A session remembers what its last request left in the cache. The next one with a prompt that
  // begins the same way runs only the rest, provided that what differs is within max_rollback of
  // the end; otherwise all of it. The cache of an idle session is given to others when they need
  // it.
  SessionId open_session();
  Status close_session(SessionId id);

 private:
  struct Parts;
  explicit Engine(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// The backends built into this library, best first.
std::vector<std::string_view> backend_names();

}  // namespace dsv4
