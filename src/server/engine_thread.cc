#include "server/engine_thread.h"

namespace dsv4::server {

EngineThread::EngineThread(std::unique_ptr<Engine> engine)
    : engine_(std::move(engine)), thread_([this](std::stop_token stop) {
        if (const Status status = engine_->run(stop); !status.ok()) fail(status);
      }) {}

Result<RequestId> EngineThread::submit(Request request, EventSink& sink) {
  const std::lock_guard lock(mutex_);
  if (failed_) return Status(Code::kInternal, "the engine has failed; restart the server");
  auto id = engine_->submit(std::move(request), sink);
  if (id.ok()) live_.insert(&sink);
  return id;
}

bool EngineThread::ended(EventSink& sink) {
  const std::lock_guard lock(mutex_);
  return live_.erase(&sink) == 1;
}

void EngineThread::fail(const Status& why) {
  std::set<EventSink*> left;
  {
    const std::lock_guard lock(mutex_);
    failed_ = true;
    left = live_;
  }
  for (EventSink* sink : left) sink->on_error(0, why);
}

void EngineThread::cancel(RequestId id) {
  // An error says that it has ended, which is what was wanted.
  (void)engine_->cancel(id);
}

void EngineThread::stop() {
  if (!thread_.joinable()) return;
  thread_.request_stop();
  thread_.join();
  for (auto report = engine_->step(); report.ok() && !report->idle();) report = engine_->step();
}

}  // namespace dsv4::server
