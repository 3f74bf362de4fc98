#include "engine/inbox.h"

#include <algorithm>
#include <utility>

#include "base/str.h"

namespace dsv4 {

Result<RequestId> Inbox::submit(Request request, EventSink& sink, double now) {
  const std::lock_guard lock(mutex_);
  Session* session = nullptr;
  if (request.session != 0) {
    const auto it = sessions_.find(request.session);
    if (it == sessions_.end() || it->second.closed) {
      return Status(Code::kInvalidArgument,
                    cat("request: session ", request.session, " is not open"));
    }
    session = &it->second;
    if (session->busy) {
      return Status(Code::kInvalidArgument, cat("request: session ", request.session,
                                                " still has a request; wait for its end"));
    }
  }
  // Requests that find a free place do not queue.
  const int64_t queued = waiting() - std::max<int64_t>(0, places_ - published_.running);
  if (max_queue_ > 0 && queued >= max_queue_) {
    ++refused_;
    return Status(Code::kUnavailable, cat("engine: the queue is full, ", queued, " of ", max_queue_,
                                          " requests wait; try again later"));
  }
  if (session) session->busy = true;
  const RequestId id = next_request_++;
  ++submitted_;
  live_.insert(id);
  mail_.requests.push_back({.id = id, .request = std::move(request), .sink = &sink, .time = now});
  wake_.notify_one();
  return id;
}

Status Inbox::cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  if (!live_.contains(id)) {
    return Status(Code::kNotFound, cat("cancel: request ", id, " has ended or never was"));
  }
  mail_.cancelled.push_back(id);
  wake_.notify_one();
  return {};
}

SessionId Inbox::open_session() {
  const std::lock_guard lock(mutex_);
  sessions_[next_session_] = {};
  return next_session_++;
}

Status Inbox::close_session(SessionId id) {
  const std::lock_guard lock(mutex_);
  const auto it = sessions_.find(id);
  if (it == sessions_.end() || it->second.closed) {
    return Status(Code::kInvalidArgument, cat("session ", id, " is not open"));
  }
  if (it->second.busy) {
    it->second.closed = true;
    return {};
  }
  sessions_.erase(it);
  mail_.closed.push_back(id);
  wake_.notify_one();
  return {};
}

EngineStats Inbox::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats s = published_;
  s.waiting = waiting();
  s.sessions = std::ssize(sessions_);
  s.submitted = submitted_;
  s.refused = refused_;
  return s;
}

void Inbox::collect(Mail& mail) {
  mail.requests.clear();
  mail.cancelled.clear();
  mail.closed.clear();
  const std::lock_guard lock(mutex_);
  std::swap(mail, mail_);
  // They wait until the step that begins now has told otherwise.
  published_.waiting += std::ssize(mail.requests);
}

bool Inbox::ended(RequestId id, SessionId session) {
  const std::lock_guard lock(mutex_);
  live_.erase(id);
  const auto it = sessions_.find(session);
  if (it == sessions_.end()) return false;
  it->second.busy = false;
  if (!it->second.closed) return false;
  sessions_.erase(it);
  return true;
}

void Inbox::publish(const EngineStats& stats) {
  const std::lock_guard lock(mutex_);
  published_ = stats;
}

void Inbox::wait(std::stop_token stop) {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, stop, [this] {
    return !mail_.requests.empty() || !mail_.cancelled.empty() || !mail_.closed.empty();
  });
}

}  // namespace dsv4
