// The engine on a thread of its own.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "dsv4/engine.h"

namespace dsv4::server {

class EngineThread {
 public:
  explicit EngineThread(std::unique_ptr<Engine> engine);
  ~EngineThread() { stop(); }

  const ModelInfo& info() const { return engine_->info(); }
  // As Engine::submit. A sink says in its on_finish and on_error that it has ended().
  Result<RequestId> submit(Request request, EventSink& sink);
  // False if it had ended before: then what it is told now does not count.
  bool ended(EventSink& sink);
  void cancel(RequestId id);
  EngineStats stats() const { return engine_->stats(); }
  // False once the engine as a whole has failed: every sink has got the error, and nothing is
  // answered any more.
  bool healthy() const { return !failed_; }

  // Ends the thread, then lets requests that were cancelled have their last word here.
  void stop();

 private:
  void fail(const Status& why);

  std::unique_ptr<Engine> engine_;
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::set<EventSink*> live_;  // guarded by mutex_
  std::jthread thread_;
};

}  // namespace dsv4::server
