// The engine behind a thread of its own: requests and cancellations come from any thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "dsv4/engine.h"

namespace dsv4::server {

class EngineThread {
 public:
  explicit EngineThread(std::unique_ptr<Engine> engine);
  ~EngineThread() { stop(); }

  const ModelInfo& info() const { return engine_->info(); }
  // The sink is called on the engine's thread.
  Result<RequestId> submit(Request request, EventSink& sink);
  void cancel(RequestId id);
  EngineStats stats();
  // Delivers the end of requests that were cancelled, then ends the thread.
  void stop();

 private:
  void run();

  std::unique_ptr<Engine> engine_;
  std::mutex mutex_;
  std::condition_variable work_;
  std::atomic<int> callers_{0};
  bool stop_ = false;
  bool idle_ = true;
  std::thread thread_;
};

}  // namespace dsv4::server
