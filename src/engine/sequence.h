// Sequence: one request on its way, from the engine's thread's point of view.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/kv_cache.h"
#include "dsv4/types.h"
#include "engine/sampler.h"

namespace dsv4 {

// Seconds of a steady clock; tests bring their own.
using Seconds = double;

struct Sequence {
  RequestId id = 0;
  Request request;
  EventSink* sink = nullptr;
  int64_t context = 0;     // longest this one may become
  int64_t max_length = 0;  // tokens the cache may come to hold: the last one drawn never runs
  uint64_t seed = 0;
  int64_t level = 0;     // see scheduler.h; set at admission
  int64_t last_run = 0;  // step number
  Seconds queued_since = 0, waited = 0;
  bool caches = false;         // takes from and leaves to the prefix cache
  std::vector<int64_t> stops;  // rising: lengths at which it leaves a snapshot on its way
  int64_t lost = 0;            // rows that a preemption cost it
  bool cancelled = false;
  bool ended = false;  // its sink has had the last word

  SequenceCache cache;
  std::vector<int32_t> tokens;  // prompt, then the answer
  TokenHistory history;         // filled where penalties need it
  size_t next_forced = 0;       // in request.forced
  size_t forced_done = 0;       // tokens of that one already in the answer
  int64_t prompt_scored = 0;    // tokens of the prompt told to on_prompt_token
  Usage usage;
  Seconds submitted = 0, started = -1, first_token = 0;

  int64_t prompt() const { return usage.prompt_tokens; }
  bool started_once() const { return started >= 0; }
  // Tokens that are not in the cache yet: one while it decodes.
  int64_t pending() const { return std::ssize(tokens) - cache.length(); }
  bool decodes() const { return usage.completion_tokens > 0 && pending() == 1; }
  int64_t held_pages() const { return std::ssize(cache.pages()); }
  bool scores_prompt() const {
    return request.prompt_logprobs >= 0 && prompt_scored < usage.prompt_tokens;
  }
};

}  // namespace dsv4
