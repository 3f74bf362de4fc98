#include "server/metrics.h"

#include "base/str.h"
#include "text/py_json.h"

namespace dsv4::server {
namespace {

void head(std::string& out, std::string_view name, std::string_view help, std::string_view type) {
  out += cat("# HELP ", name, " ", help, "\n# TYPE ", name, " ", type, "\n");
}

void one(std::string& out, std::string_view name, std::string_view help, std::string_view type,
         int64_t value) {
  head(out, name, help, type);
  out += cat(name, " ", value, "\n");
}

}  // namespace

void Metrics::Histogram::add(Duration d) {
  const double x = std::chrono::duration<double>(d).count();
  size_t i = 0;
  while (i < kBounds.size() && x > kBounds[i]) ++i;
  ++counts[i];
  sum += x;
}

void Metrics::Histogram::print(std::string& out, std::string_view name,
                               std::string_view help) const {
  head(out, name, help, "histogram");
  int64_t total = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    total += counts[i];
    const std::string bound = i < kBounds.size() ? py::float_repr(kBounds[i]) : "+Inf";
    out += cat(name, "_bucket{le=\"", bound, "\"} ", total, "\n");
  }
  out += cat(name, "_sum ", py::float_repr(sum), "\n", name, "_count ", total, "\n");
}

void Metrics::http(std::string_view route, int status) {
  const std::lock_guard lock(mutex_);
  ++http_[{std::string(route), status}];
}
void Metrics::request_started() {
  const std::lock_guard lock(mutex_);
  ++started_;
}
void Metrics::request_ended(std::string_view outcome) {
  const std::lock_guard lock(mutex_);
  ++ended_[std::string(outcome)];
}
void Metrics::first_token(Duration since_submitted) {
  const std::lock_guard lock(mutex_);
  first_.add(since_submitted);
}
void Metrics::next_token(Duration since_last) {
  const std::lock_guard lock(mutex_);
  next_.add(since_last);
}
void Metrics::usage(int64_t prompt, int64_t cached, int64_t completion) {
  const std::lock_guard lock(mutex_);
  prompt_ += prompt;
  cached_ += cached;
  completion_ += completion;
}

std::string Metrics::text(const EngineStats& e, int64_t connections) const {
  std::string out;
  const std::lock_guard lock(mutex_);
  head(out, "dsv4_http_requests_total", "HTTP requests answered.", "counter");
  for (const auto& [key, n] : http_) {
    out += cat("dsv4_http_requests_total{route=\"", key.first, "\",status=\"", key.second, "\"} ", n,
               "\n");
  }
  one(out, "dsv4_http_connections", "Open connections.", "gauge", connections);
  one(out, "dsv4_generations_started_total", "Answers begun.", "counter", started_);
  head(out, "dsv4_generations_total", "Answers ended, by how.", "counter");
  for (const auto& [outcome, n] : ended_) {
    out += cat("dsv4_generations_total{outcome=\"", outcome, "\"} ", n, "\n");
  }
  one(out, "dsv4_requests_running", "Sequences in the batch.", "gauge", e.running);
  one(out, "dsv4_requests_waiting", "Sequences in the queue.", "gauge", e.waiting);
  one(out, "dsv4_steps_total", "Batches run.", "counter", e.steps);
  one(out, "dsv4_prompt_tokens_total", "Prompt tokens of answers that ended.", "counter", prompt_);
  one(out, "dsv4_cached_tokens_total", "Of these, tokens taken from the cache.", "counter", cached_);
  one(out, "dsv4_completion_tokens_total", "Tokens of answers that ended.", "counter", completion_);
  one(out, "dsv4_prefill_rows_total", "Prompt rows run.", "counter", e.prefill_tokens);
  one(out, "dsv4_decode_rows_total", "Decode rows run.", "counter", e.decode_tokens);
  one(out, "dsv4_cache_pages_free", "Free pages of the cache.", "gauge", e.free_pages);
  one(out, "dsv4_cache_pages", "All pages of the cache.", "gauge", e.total_pages);
  one(out, "dsv4_requests_refused_total", "Refused because the queue was full.", "counter",
      e.refused);
  one(out, "dsv4_preemptions_total", "Sequences that gave up their place.", "counter",
      e.preemptions);
  one(out, "dsv4_draft_tokens_total", "Tokens drafted.", "counter", e.drafted_tokens);
  one(out, "dsv4_draft_tokens_accepted_total", "Of these, accepted.", "counter", e.accepted_tokens);
  head(out, "dsv4_engine_seconds_total", "Time of steps, by what it went into.", "counter");
  const std::pair<std::string_view, double> parts[] = {{"schedule", e.schedule_seconds},
                                                       {"forward", e.forward_seconds},
                                                       {"sample", e.sample_seconds},
                                                       {"deliver", e.sink_seconds},
                                                       {"all", e.step_time.sum}};
  for (const auto& [part, seconds] : parts) {
    out += cat("dsv4_engine_seconds_total{part=\"", part, "\"} ", py::float_repr(seconds), "\n");
  }
  const PrefixCacheStats& prefix = e.prefix;
  one(out, "dsv4_prefix_cache_lookups_total", "Requests that asked the prefix cache.", "counter",
      prefix.lookups);
  one(out, "dsv4_prefix_cache_hits_total", "Of these, found something.", "counter", prefix.hits);
  one(out, "dsv4_prefix_cache_asked_tokens_total", "Prompt tokens asked for.", "counter",
      prefix.asked_tokens);
  one(out, "dsv4_prefix_cache_reused_tokens_total", "Of these, not computed again.", "counter",
      prefix.reused_tokens);
  const std::pair<std::string_view, const PrefixCacheStats::Tier*> tiers[] = {
      {"device", &prefix.device}, {"host", &prefix.host}, {"disk", &prefix.disk}};
  const auto tiered = [&](std::string_view name, std::string_view help, std::string_view type,
                          const auto& value) {
    head(out, name, help, type);
    for (const auto& [tier, stats] : tiers) {
      out += cat(name, "{tier=\"", tier, "\"} ", value(*stats), "\n");
    }
  };
  using Tier = PrefixCacheStats::Tier;
  tiered("dsv4_prefix_cache_bytes", "Held, by tier.", "gauge",
         [](const Tier& t) { return t.bytes; });
  tiered("dsv4_prefix_cache_page_hits_total", "Pages taken, by tier.", "counter",
         [](const Tier& t) { return t.page_hits; });
  tiered("dsv4_prefix_cache_snapshot_hits_total", "Snapshots taken, by tier.", "counter",
         [](const Tier& t) { return t.snapshot_hits; });
  tiered("dsv4_prefix_cache_evictions_total", "Evictions, by tier.", "counter",
         [](const Tier& t) { return t.evictions; });
  first_.print(out, "dsv4_time_to_first_token_seconds", "From submission to the first token.");
  next_.print(out, "dsv4_inter_token_seconds", "Between tokens of one answer.");
  return out;
}

}  // namespace dsv4::server
