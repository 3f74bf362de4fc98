// The engine on a thread of its own.
#pragma once

#include <atomic>
#include <memory>
#include <thread>

#include "dsv4/engine.h"

namespace dsv4::server {

class EngineThread {
 public:
  explicit EngineThread(std::unique_ptr<Engine> engine);
  ~EngineThread() { stop(); }

  const ModelInfo& info() const { return engine_->info(); }
  Result<RequestId> submit(Request request, EventSink& sink);
  void cancel(RequestId id);
  EngineStats stats() const { return engine_->stats(); }
  // False once the engine as a whole has failed: nothing is answered any more.
  bool healthy() const { return !failed_; }

  // Ends the thread, then lets requests that were cancelled have their last word here.
  void stop();

 private:
  std::unique_ptr<Engine> engine_;
  std::atomic<bool> failed_{false};
  std::jthread thread_;
};

}  // namespace dsv4::server
