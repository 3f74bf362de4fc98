// Inbox: where any thread leaves requests and cancellations for the engine's thread, which collects
// them between steps. Also what must be known without waiting for a step: which requests live,
// which sessions are open, how long the queue is.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <stop_token>
#include <vector>

#include "dsv4/status.h"
#include "dsv4/types.h"

namespace dsv4 {

class Inbox {
 public:
  struct Submitted {
    RequestId id = 0;
    Request request;
    EventSink* sink = nullptr;
    double time = 0;  // seconds, of the clock that submit() was given
  };
  struct Mail {
    std::vector<Submitted> requests;
    std::vector<RequestId> cancelled;
    std::vector<SessionId> closed;  // idle ones, whose cache can go
  };

  // `places` requests may run, `max_queue` more may wait (0 = no limit).
  Inbox(int64_t places, int64_t max_queue) : places_(places), max_queue_(max_queue) {}

  // Any thread. The request has passed its checks but for session and queue.
  Result<RequestId> submit(Request request, EventSink& sink, double now);
  Status cancel(RequestId id);
  SessionId open_session();
  Status close_session(SessionId id);
  EngineStats stats() const;

  // The engine's thread. `mail` is replaced; its memory is kept in use.
  void collect(Mail& mail);
  // A request has ended. True when its session was closed meanwhile: its cache can go.
  bool ended(RequestId id, SessionId session);
  // What stats() tells from now on; fills in the counts kept here.
  void publish(const EngineStats& stats);
  // Sleeps until there is mail or `stop` is requested.
  void wait(std::stop_token stop);

 private:
  struct Session {
    bool busy = false;
    bool closed = false;  // while its request runs
  };
  int64_t waiting() const { return published_.waiting + std::ssize(mail_.requests); }

  const int64_t places_, max_queue_;
  mutable std::mutex mutex_;
  std::condition_variable_any wake_;
  Mail mail_;
  std::set<RequestId> live_;
  std::map<SessionId, Session> sessions_;
  EngineStats published_;
  int64_t submitted_ = 0, refused_ = 0;
  RequestId next_request_ = 1;
  SessionId next_session_ = 1;
};

}  // namespace dsv4
