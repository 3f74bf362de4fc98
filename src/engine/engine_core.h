// EngineCore: requests in, events out, over one model on one backend. The facade's Engine adds
// loading; contracts of the public verbs stand in dsv4/engine.h.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "dsv4/status.h"
#include "dsv4/types.h"
#include "engine/memory_plan.h"
#include "engine/runner.h"
#include "engine/sampler.h"

namespace dsv4 {

class EngineCore {
 public:
  // `model`, `backend` and `ops` (the backend's table or a wrapper of it) must outlive the core.
  static Result<std::unique_ptr<EngineCore>> make(const Model& model, const EngineLimits& limits,
                                                  Backend& backend, const OpTable& ops);

  Result<RequestId> submit(Request request, EventSink& sink);
  Status cancel(RequestId id);
  Result<StepReport> step();
  EngineStats stats() const;
  SessionId open_session();
  Status close_session(SessionId id);

  const KvCache& cache() const { return *cache_; }

 private:
  using Clock = std::chrono::steady_clock;

  struct Sequence {
    RequestId id = 0;
    Request request;
    EventSink* sink = nullptr;
    int64_t max_length = 0;  // tokens the cache may come to hold: the last one drawn never runs
    uint64_t seed = 0;
    bool cancelled = false;
    bool ended = false;  // its sink has had the last word

    SequenceCache cache;
    std::vector<int32_t> tokens;  // prompt, then what was drawn
    TokenHistory history;
    Usage usage;
    Clock::time_point started, first_token;

    int64_t pending() const { return std::ssize(tokens) - cache.length(); }
  };

  // What an idle session left in the cache: the rows of `tokens`.
  struct Session {
    SequenceCache cache;
    std::vector<int32_t> tokens;
    bool busy = false;
    bool closed = false;    // closed while its request runs
    int64_t last_used = 0;  // step number, for eviction
  };

  EngineCore(const Model& model, const EngineLimits& limits, std::unique_ptr<KvCache> cache,
             std::unique_ptr<Runner> runner);

  Status check_request(const Request& request) const;
  void drop_cancelled();
  // First come, first served: nobody overtakes, and what was admitted can always run to its end,
  // since pages for its longest possible length are promised to it.
  void admit_waiting();
  // Takes the session's cache over as far as the prompt agrees with it.
  void reuse_session(Sequence& seq);
  bool evict_idle_session(SessionId keep);
  int64_t free_pages() const;  // not promised to a running sequence
  // Draws the token behind everything that ran.
  void advance(Sequence& seq, std::span<const float> logits);
  void finish(Sequence& seq, FinishReason reason);
  void fail(Sequence& seq, const Status& status);
  // Gives the cache back, to the session where there is one and the rows are `sound`.
  void release(Sequence& seq, bool sound);

  const Model& model_;
  const EngineLimits limits_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Runner> runner_;
  Sampler sampler_;
  std::deque<Sequence> waiting_;
  std::deque<Sequence> running_;  // in order of admission
  std::map<SessionId, Session> sessions_;
  RequestId next_request_ = 1;
  SessionId next_session_ = 1;
  EngineStats stats_;
};

}  // namespace dsv4
