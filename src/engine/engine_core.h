// EngineCore: requests in, events out, over one model on one backend. The facade's Engine adds
// loading; contracts of the public verbs stand in dsv4/engine.h.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <stop_token>
#include <vector>

#include "base/hash.h"
#include "cache/kv_cache.h"
#include "cache/prefix_index.h"
#include "dsv4/status.h"
#include "dsv4/types.h"
#include "engine/inbox.h"
#include "engine/memory_plan.h"
#include "engine/next_token.h"
#include "engine/runner.h"
#include "engine/sampler.h"
#include "engine/sequence.h"

namespace dsv4 {

class EngineCore {
 public:
  // What a core works on; `limits` those that cache and runner were made with.
  struct Parts {
    EngineLimits limits;
    int64_t vocab_size = 0;
    int32_t eos_token = 0;
    std::unique_ptr<KvCache> cache;
    std::unique_ptr<PrefixIndex> prefix;  // of `cache`; null: none
    std::unique_ptr<StepRunner> runner;
    std::function<Seconds()> clock;
    WarmUp warm_up = {};
  };
  explicit EngineCore(Parts parts);
  // `model`, `backend` and `ops` (the backend's table or a wrapper of it) must outlive the core.
  // `identity` says which stored state is of this model on this backend.
  static Result<std::unique_ptr<EngineCore>> make(const Model& model, const EngineLimits& limits,
                                                  Backend& backend, const OpTable& ops,
                                                  Hash128 identity,
                                                  const ProgressSink& progress = {});
  const WarmUp& warm_up() const { return warm_up_; }

  // Any thread.
  Result<RequestId> submit(Request request, EventSink& sink);
  Status cancel(RequestId id) { return inbox_.cancel(id); }
  SessionId open_session() { return inbox_.open_session(); }
  Status close_session(SessionId id) { return inbox_.close_session(id); }
  EngineStats stats() const { return inbox_.stats(); }

  // The engine's thread.
  Result<StepReport> step();
  void wait(std::stop_token stop) { inbox_.wait(stop); }
  // Integrity recount of everything that is held.
  Status check() const { return prefix_ ? prefix_->check() : cache_->check(); }

 private:
  // What an idle session left in the cache: the rows of `tokens`.
  struct Session {
    SequenceCache cache;
    std::vector<int32_t> tokens;
    int64_t last_used = 0;  // step number, for eviction
  };

  void collect_mail();
  void drop_cancelled();

  // engine_admission.cc: who has a place in the cache.
  void admit_waiting();
  bool fits(const Sequence& seq) const;
  int64_t available_pages() const { return cache_->free_pages() + cache_->idle_pages(); }
  bool make_place(const Sequence& seq);
  void admit(size_t index);
  // Takes the session's cache over as far as the prompt agrees with it.
  void reuse_session(Sequence& seq);
  bool evict_idle_session(SessionId keep);
  const Session* cached_session(const Sequence& seq) const;
  // Back to the queue; what it had in the cache will be computed again.
  void preempt(size_t index);
  int64_t lacking_pages(std::span<const int64_t> rows) const;

  // engine_prefix.cc: what sequences take from the prefix cache and leave there.
  bool expects_prefix(const Sequence& seq);
  void begin_with_prefix(Sequence& seq);
  void plan_stops(Sequence& seq, int64_t agreeing) const;
  void leave_prefix(Sequence& seq, int64_t length);

  std::vector<int64_t> plan_step();
  Result<StepReport> run_batch();
  // The rows of one sequence have run; `results` holds what it asked for, from `first_row` on.
  void advance(Sequence& seq, const SequenceRows& rows, const StepResult& results,
               int64_t first_row);
  void score_prompt(Sequence& seq, const LogitsView& logits, int64_t first_row, int64_t rows);
  void tell_token(Sequence& seq, const NextToken& next);
  void finish(Sequence& seq, FinishReason reason);
  void fail(Sequence& seq, const Status& status);
  // Gives the cache back, to the session where there is one and the rows are `sound`.
  void release(Sequence& seq, bool sound);
  void publish();
  // Runs what calls a sink and counts its time.
  template <class F>
  void timed_sink(F&& call);

  const EngineLimits limits_;
  const int64_t vocab_size_;
  const int32_t eos_token_;
  const std::unique_ptr<KvCache> cache_;
  const std::unique_ptr<PrefixIndex> prefix_;
  const std::unique_ptr<StepRunner> runner_;
  const std::function<Seconds()> clock_;
  const WarmUp warm_up_;
  Inbox inbox_;
  Inbox::Mail mail_;
  Sampler sampler_;
  std::vector<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;
  std::map<SessionId, Session> sessions_;
  EngineStats stats_;
  Seconds sink_seconds_ = 0, sample_seconds_ = 0;  // of the running step
  Seconds last_end_ = -1, end_interval_ = 0;       // between requests that ended, smoothed
};

}  // namespace dsv4
