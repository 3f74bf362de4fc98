// The words of the public API: requests, events and plans. No JSON, no device types; text is not
// here either, the engine speaks token ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
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
//   4. temperature 0: the largest, lowest id on ties; otherwise l /= temperature
//   5. top-k: the k largest, on a tie at the border the lowest ids
//   6. top-p: of those, by falling probability, the fewest whose sum reaches p; at least one
//   7. min-p: of those, the ones with probability >= min_p * the largest
//   8. the draw, renormalised, from a generator keyed by (seed, position of the token): the same
//   seed
//      gives the same answer whatever else runs beside it
// Log probabilities are the log softmax of the raw logits, before step 1.
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

struct Request {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  int64_t max_tokens = -1;           // -1: until the context ends
  std::vector<int32_t> stop_tokens;  // besides the end-of-sequence token
  bool ignore_eos = false;
  SessionId session = 0;  // reuse what this session's cache already holds
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
  int64_t cached_tokens = 0;  // of these, taken from the session's cache
  int64_t completion_tokens = 0;
  uint64_t seed = 0;           // the one used
  double prefill_seconds = 0;  // from the first step to the first token
  double decode_seconds = 0;   // from the first token to the last
};

// Receives what happens to a request, from inside step(). Either on_finish or on_error is last.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void on_prefill(RequestId, int64_t /*done*/, int64_t /*total*/) noexcept {}
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
  size_t workspace = 0;  // step inputs and outputs; scratch of ops comes on top, on first use
  size_t available = 0;  // free now in the backend's memory

  int64_t context = 0, max_sequences = 0, cache_tokens = 0, prefill_chunk = 0;
  size_t cache_per_sequence = 0;  // rings and tails
  double cache_per_token = 0;     // compressed entries and indexer keys
  struct Region {
    std::string name;
    int64_t layers = 0;
    size_t bytes = 0;
  };
  std::vector<Region> regions;  // of the cache, by kind

  size_t total() const { return weights + activations + cache + workspace; }
  bool fits() const { return total() <= available; }
};
// A table for people, several lines, each ended.
std::string to_text(const MemoryPlan& plan);

struct EngineOptions {
  std::string model_dir;
  std::string device = "auto";  // a name of backend_names(), or "auto"
  int64_t context = 0;          // longest sequence; 0 = 8192 or the model's own limit, the smaller
  int64_t max_sequences = 1;    // that may be in the cache at one time
  int64_t cache_tokens = 0;     // over all sequences; 0 = context * max_sequences
  int64_t prefill_chunk = 256;  // prompt rows of one step
  int64_t max_rollback = 8;  // tokens that can be taken back from a sequence without a new prefill
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
};

struct StepReport {
  int64_t prefill_rows = 0, decode_rows = 0;
  int64_t running = 0, waiting = 0;  // after the step
  bool idle() const { return running == 0 && waiting == 0; }
};

struct EngineStats {
  int64_t steps = 0;
  int64_t prefill_tokens = 0, decode_tokens = 0, cached_tokens = 0;
  int64_t running = 0, waiting = 0, sessions = 0;
  int64_t free_pages = 0, total_pages = 0;
  size_t workspace_bytes = 0;
  int64_t workspace_growths = 0;  // constant in steady state
};

}  // namespace dsv4
