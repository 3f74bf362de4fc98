#include "server/engine_thread.h"

namespace dsv4::server {

EngineThread::EngineThread(std::unique_ptr<Engine> engine)
    : engine_(std::move(engine)), thread_([this](std::stop_token stop) {
        if (!engine_->run(stop).ok()) failed_ = true;
      }) {}

Result<RequestId> EngineThread::submit(Request request, EventSink& sink) {
  if (failed_) return Status(Code::kInternal, "the engine has failed; restart the server");
  return engine_->submit(std::move(request), sink);
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
