#include "server/engine_thread.h"

namespace dsv4::server {

EngineThread::EngineThread(std::unique_ptr<Engine> engine)
    : engine_(std::move(engine)), thread_([this] { run(); }) {}

void EngineThread::stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_.notify_one();
  thread_.join();
  for (auto report = engine_->step(); report.ok() && !report->idle();) report = engine_->step();
}

Result<RequestId> EngineThread::submit(Request request, EventSink& sink) {
  ++callers_;
  const std::lock_guard lock(mutex_);
  --callers_;
  auto id = engine_->submit(std::move(request), sink);
  idle_ = false;
  work_.notify_one();
  return id;
}

void EngineThread::cancel(RequestId id) {
  ++callers_;
  const std::lock_guard lock(mutex_);
  --callers_;
  // An error says that it has ended, which is what was wanted.
  (void)engine_->cancel(id);
}

EngineStats EngineThread::stats() {
  ++callers_;
  const std::lock_guard lock(mutex_);
  --callers_;
  return engine_->stats();
}

void EngineThread::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    work_.wait(lock, [&] { return stop_ || !idle_; });
    if (stop_) return;
    const auto report = engine_->step();
    idle_ = !report.ok() || report->idle();
    lock.unlock();
    while (callers_ > 0) std::this_thread::yield();
    lock.lock();
  }
}

}  // namespace dsv4::server
