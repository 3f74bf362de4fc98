// The words of the public API: requests, events and plans. No JSON, no device types; text is not
// here either, the engine speaks token ids.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dsv4/status.h"

namespace dsv4 {

using RequestId = int64_t;
using SessionId = int64_t;  // 0 = none

// How a token is chosen from a row of logits; in this order:
//   1. repetition penalty r (Hugging Face): for every token id of prompt or answer, l > 0 ? l/r :
//   l*r
//   2. frequency and presence penalty (OpenAI): l -= frequency * count + presence * (count > 0),
//      counts over the answer so far
//   3. logit bias (OpenAI): l += bias
//      then tokens that the request's constraint forbids are left out
//   4. temperature 0: the largest, lowest id on ties; otherwise l /= temperature
//   5. top-k: the k largest, on a tie at the border the lowest ids
//   6. top-p: of those, by falling probability, the fewest whose sum reaches p; at least one
//   7. min-p: of those, the ones with probability >= min_p * the largest
//   8. the draw, renormalised, from a generator keyed by (seed, position of the token): the same
//   seed
//      gives the same answer whatever else runs beside it
// Log probabilities are the log softmax of the raw logits, before step 1: they do not depend on
// penalties or constraints, and a forced token has one too.
struct SamplingParams {
  float temperature = 1.0f;
  int32_t top_k = 0;  // 0 = off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::vector<std::pair<int32_t, float>> logit_bias;  // token id, bias
  std::optional<uint64_t> seed;                       // none: a random one
  int32_t logprobs = -1;  // -1 = none, 0 = of the chosen token, n = and of the n best
};

// Limits what an answer may be, token by token: a grammar, a list of choices. Called on the
// engine's thread between steps and only for requests that have one, so its time is part of every
// step: keep `allowed` to a small part of a millisecond (return masks kept from earlier calls where
// possible).
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  // The tokens that may come next: bit id % 64 of word id / 64 is set for token `id`; at least
  // (vocab_size + 63) / 64 words. Empty: any token. Valid until the next accept(). A constraint
  // that is complete allows the end-of-sequence token; one that allows nothing ends the request
  // with an error.
  virtual std::span<const uint64_t> allowed() noexcept = 0;
  // Each token of the answer in order, whether drawn or forced.
  virtual void accept(int32_t token) noexcept = 0;
};

// Tokens that the engine puts into an answer in place of what it would draw, once. A thinking
// budget of n tokens: {.after = n, .tokens = {"</think>"}, .unless = {"</think>"}}. A fixed
// beginning:
// {.after = 0, .tokens = ...}. They count as tokens of the answer and can end it.
struct ForcedTokens {
  int64_t after = 0;            // due when the answer has this many tokens
  std::vector<int32_t> tokens;  // at least one
  std::vector<int32_t> unless;  // dropped if the answer has one of these by then
};

// n answers to one prompt are n requests with seeds of their own (seed, seed + 1, ...); with the
// prefix cache on, the prompt is computed once.
struct Request {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  int64_t max_tokens = -1;           // -1: until the context ends; 0 with prompt_logprobs only
  int64_t max_context = 0;           // prompt and answer together; 0 = the engine's
  std::vector<int32_t> stop_tokens;  // besides the end-of-sequence token
  bool ignore_eos = false;
  SessionId session = 0;  // reuse what this session's cache already holds
  // Higher runs first. Waiting raises a request by one level every few seconds, so nobody starves;
  // a request may take the place of a running one of a lower level, which goes on later.
  int32_t priority = 0;
  // Log probabilities of the prompt's own tokens through on_prompt_token: -1 = none, 0 = of the
  // tokens, n = and of the n best. Such a prompt is computed in full.
  int32_t prompt_logprobs = -1;
  bool use_prefix_cache = true;                 // may begin with what the prefix cache holds
  std::shared_ptr<TokenConstraint> constraint;  // of this request alone
  std::vector<ForcedTokens> forced;             // in rising order of `after`
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
};

struct TokenEvent {
  int32_t token = 0;
  int64_t position = 0;               // in the sequence, prompt included
  std::optional<float> logprob;       // where asked for
  std::span<const TokenLogprob> top;  // best first; valid during the call
  bool forced = false;                // from Request::forced
};

enum class FinishReason : uint8_t {
  kEos,        // the model ended its turn
  kStopToken,  // one of Request::stop_tokens
  kMaxTokens,
  kContext,  // no position left
  kCancelled,
};
std::string_view finish_reason_name(FinishReason reason);

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of these, taken from the session's or the prefix cache
  int64_t completion_tokens = 0;
  int64_t preemptions = 0;     // times it gave its place up and was computed again
  uint64_t seed = 0;           // the one used
  double queue_seconds = 0;    // from submit to the first step
  double prefill_seconds = 0;  // from the first step to the first token
  double decode_seconds = 0;   // from the first token to the last
};

// Receives what happens to a request, on the thread that steps. Either on_finish or on_error is
// last. A sink may submit and cancel from inside a call.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void on_prefill(RequestId, int64_t /*done*/, int64_t /*total*/) noexcept {}
  // The prompt's tokens where prompt_logprobs asks for them, in order; the first has no logprob.
  virtual void on_prompt_token(RequestId, const TokenEvent&) noexcept {}
  // An end-of-sequence or stop token is reported too, before on_finish.
  virtual void on_token(RequestId id, const TokenEvent& event) noexcept = 0;
  virtual void on_finish(RequestId id, FinishReason reason, const Usage& usage) noexcept = 0;
  virtual void on_error(RequestId id, const Status& status) noexcept = 0;
};

// Long work at load, called often; keep it cheap.
struct LoadProgress {
  std::string_view stage;
  int64_t done = 0, total = 0;
  std::string_view unit;
};

// What a loaded engine occupies, in bytes, known before a weight is read.
struct MemoryPlan {
  std::string device;     // one line
  size_t weights = 0;     // copies made for the backend
  size_t checkpoint = 0;  // tensors in the files; what is not copied is read in place
  size_t activations = 0;
  size_t cache = 0;
  size_t workspace = 0;    // step inputs and outputs; scratch of ops comes on top, on first use
  size_t prefix_host = 0;  // of the prefix cache at most, in host memory, as it fills
  bool prefix_on_device = false;  // host memory is the backend's memory, so that counts too
  size_t available = 0;           // free now in the backend's memory

  int64_t context = 0, max_sequences = 0, cache_tokens = 0, prefill_chunk = 0;
  std::string cache_rows;         // "fp8" or "bf16"
  size_t cache_per_sequence = 0;  // rings and tails
  double cache_per_token = 0;     // compressed entries and indexer keys
  struct Region {
    std::string name;
    int64_t layers = 0;
    size_t bytes = 0;
  };
  std::vector<Region> regions;  // of the cache, by kind

  size_t total() const {
    return weights + activations + cache + workspace + (prefix_on_device ? prefix_host : 0);
  }
  bool fits() const { return total() <= available; }
};
// A table for people, several lines, each ended.
std::string to_text(const MemoryPlan& plan);

// What sequences leave behind for others that begin the same way. Exact: an answer is the same bits
// with and without it.
struct PrefixCacheOptions {
  bool enabled = false;
  // Snapshots of rings and tails, and pages that had to leave the backend's memory.
  size_t host_bytes = size_t{256} << 20;
  std::string disk_dir;  // empty: no disk tier. It survives restarts; one engine at a time
  size_t disk_bytes = size_t{4} << 30;
  int64_t snapshot_spans = 4;  // of a long prompt, every so many spans; 0 = at its end only
};

struct EngineOptions {
  std::string model_dir;
  std::string device = "auto";  // a name of backend_names(), or "auto"
  // Keys and values in the cache: "fp8", "bf16", or "auto": what is fastest on the device. They hold the same values, so
  // answers do not differ; fp8 takes 57 % of the memory.
  std::string cache_rows = "auto";
  int64_t context = 0;          // longest sequence; 0 = 8192 or the model's own limit, the smaller
  int64_t max_sequences = 1;    // that may be in the cache at one time
  int64_t cache_tokens = 0;     // over all sequences; 0 = context * max_sequences
  int64_t prefill_chunk = 256;  // prompt rows of one step
  int64_t step_tokens =
      0;  // rows of one step, prompts and decode; 0 = prefill_chunk + max_sequences
  int64_t max_rollback = 8;  // tokens that can be taken back from a sequence without a new prefill
  int64_t max_queue = 1024;  // requests that may wait; 0 = no limit
  int64_t prompt_logprob_rows = 16;  // rows of one step for prompts that want log probabilities
  PrefixCacheOptions prefix;
  std::function<void(const LoadProgress&)> progress;
  std::function<void(const MemoryPlan&)> on_plan;  // called once, before a weight is read
};

struct ModelInfo {
  int64_t vocab_size = 0;
  int64_t context = 0;        // of the engine
  int64_t model_context = 0;  // of the model
  int32_t bos_token = 0;
  int32_t eos_token = 0;
  SamplingParams sampling;  // defaults of generation_config.json
  std::string device;       // one line
  // Where the device replays steps: how many sizes of them load() recorded, and how long that took.
  int64_t recorded_steps = 0;
  double warm_up_seconds = 0;
};

struct StepReport {
  int64_t prefill_rows = 0, decode_rows = 0;
  int64_t running = 0, waiting = 0;  // after the step
  bool idle() const { return running == 0 && waiting == 0; }
};

// Counts by duration; bounds are upper ones in seconds, the last bin has none.
struct Histogram {
  static constexpr std::array<double, 16> kBounds = {.0005, .001, .002, .004, .008, .015, .03, .06,
                                                     .125,  .25,  .5,   1,    2,    4,    8,   16};
  std::array<int64_t, kBounds.size() + 1> counts{};
  int64_t count = 0;
  double sum = 0;
  void add(double seconds);
};

struct PrefixCacheStats {
  struct Tier {
    int64_t pages = 0, snapshots = 0;  // held now
    size_t bytes = 0;
    int64_t page_hits = 0, snapshot_hits = 0;  // taken from this tier
    int64_t evictions = 0;
  };
  Tier device, host, disk;        // snapshots are in host memory or on disk
  int64_t lookups = 0, hits = 0;  // requests that asked, that found something
  int64_t asked_tokens = 0, reused_tokens = 0;
  int64_t rejected_files = 0;  // torn, damaged or of another model; removed
};

struct EngineStats {
  int64_t steps = 0;
  int64_t prefill_tokens = 0, decode_tokens = 0, cached_tokens = 0;
  int64_t running = 0, waiting = 0, sessions = 0;
  int64_t submitted = 0, finished = 0, cancelled = 0, failed = 0;
  int64_t refused = 0;  // queue full
  int64_t preemptions = 0, recomputed_tokens = 0;
  int64_t drafted_tokens = 0, accepted_tokens = 0;  // speculation
  int64_t free_pages = 0, total_pages = 0;          // free: by nobody or by the prefix cache alone
  size_t workspace_bytes = 0;
  int64_t workspace_growths = 0;  // constant in steady state

  Histogram step_time;             // one step, all of it
  double schedule_seconds = 0;     // of it: queue, plan, cache bookkeeping
  double forward_seconds = 0;      // the batch through the model, tokens or logits brought back
  double sample_seconds = 0;       // draws on the host, constraints
  double sink_seconds = 0;         // inside the callbacks of sinks
  double retry_after_seconds = 0;  // estimate: until the queue has room

  PrefixCacheStats prefix;
};

}  // namespace dsv4
