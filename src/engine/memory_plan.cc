#include "engine/memory_plan.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <limits>

#include "base/str.h"
#include "model/activations.h"

namespace dsv4 {
namespace {

constexpr int64_t kDefaultContext = 8192;
constexpr int64_t kMaxSequences = 65536;
constexpr int64_t kMaxChunk = 65536;
constexpr int64_t kMaxQueue = 1 << 24;

Status check_range(std::string_view option, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return {};
  return Status(Code::kInvalidArgument,
                cat("engine: ", option, " ", value, ": expected ", low, "..", high));
}

std::string human(size_t bytes) {
  static constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

void line(std::string& out, std::string_view name, size_t bytes, std::string_view note) {
  char text[160];
  std::snprintf(text, sizeof text, "  %-26.*s %11s", static_cast<int>(name.size()), name.data(),
                human(bytes).c_str());
  out += text;
  if (!note.empty()) out += cat("  ", note);
  out += '\n';
}

}  // namespace

Result<EngineLimits> resolve_limits(const EngineOptions& o, const ModelConfig& config,
                                    const CacheSpec& spec) {
  EngineLimits l;
  const int64_t longest =
      std::min<int64_t>(config.max_position_embeddings, std::numeric_limits<int32_t>::max());
  l.context = o.context == 0 ? std::min(kDefaultContext, longest) : o.context;
  DSV4_TRY(check_range("context", l.context, 1, longest));
  DSV4_TRY(check_range("max_sequences", o.max_sequences, 1, kMaxSequences));
  DSV4_TRY(check_range("prefill_chunk", o.prefill_chunk, 1, kMaxChunk));
  DSV4_TRY(check_range("max_rollback", o.max_rollback, 0, kMaxChunk));
  if (o.step_tokens != 0) {  // two: one for who decodes, one for who waits
    DSV4_TRY(check_range("step_tokens", o.step_tokens, 2, kMaxChunk + kMaxSequences));
  }
  DSV4_TRY(check_range("max_queue", o.max_queue, 0, kMaxQueue));
  DSV4_TRY(check_range("prompt_logprob_rows", o.prompt_logprob_rows, 0, kMaxChunk));
  DSV4_TRY(check_range("cache_tokens", o.cache_tokens, 0, std::numeric_limits<int64_t>::max() / 2));

  const int64_t spans = (l.context + spec.span - 1) / spec.span;
  l.prefill_chunk = std::min(o.prefill_chunk, l.context);
  l.cache = {.max_sequences = o.max_sequences,
             .max_tokens = o.cache_tokens ? o.cache_tokens : o.max_sequences * spans * spec.span,
             .max_rollback = o.max_rollback};
  DSV4_TRY(check_range("prefix.snapshot_spans", o.prefix.snapshot_spans, 0, kMaxChunk));
  l.prefix = o.prefix;
  l.max_queue = o.max_queue;
  l.prompt_logprob_rows = std::min(o.prompt_logprob_rows, l.prefill_chunk);
  l.batch = {.max_rows = o.step_tokens ? o.step_tokens : l.prefill_chunk + o.max_sequences,
             .max_sequences = o.max_sequences,
             .max_logit_rows = o.max_sequences + l.prompt_logprob_rows,
             .context = l.context};
  return l;
}

Result<MemoryPlan> plan_memory(const EngineLimits& limits, const ModelConfig& config,
                               const ModelPlan& plan, const CacheSpec& spec, const Backend& backend,
                               size_t weights, size_t checkpoint) {
  DSV4_ASSIGN(const CachePlan cache, plan_cache(spec, backend.kv_format(), limits.cache));
  MemoryPlan m;
  m.device = backend.describe();
  m.weights = weights;
  m.checkpoint = checkpoint;
  m.activations =
      activation_bytes(config, plan, limits.batch.max_rows, limits.batch.max_logit_rows);
  m.cache = cache.bytes;
  m.workspace = BatchBuilder::device_bytes(limits.batch, spec.span);
  m.prefix_host = limits.prefix.enabled ? limits.prefix.host_bytes : 0;
  m.prefix_on_device = backend.shares_host_memory();
  m.available = backend.memory().available;
  m.context = limits.context;
  m.max_sequences = cache.slots;
  m.cache_tokens = cache.pages * cache.span;
  m.cache_rows = kv_format_name(backend.kv_format());
  m.prefill_chunk = limits.prefill_chunk;
  m.cache_per_sequence = cache.slot_bytes;
  m.cache_per_token = cache.bytes_per_token();
  for (const RegionPlan& r : cache.regions) {
    const auto same = std::find_if(m.regions.begin(), m.regions.end(), [&](const auto& region) {
      return region.name == region_name(r.kind);
    });
    auto& region = same == m.regions.end() ? m.regions.emplace_back() : *same;
    region.name = region_name(r.kind);
    region.layers += 1;
    region.bytes += r.bytes;
  }
  return m;
}

std::string to_text(const MemoryPlan& m) {
  std::string out = cat("memory plan for ", m.device, "\n");
  line(out, "weights", m.weights,
       cat("of ", human(m.checkpoint), " in the files, the rest is read in place"));
  line(out, "activations", m.activations, cat("chunks of ", m.prefill_chunk, " tokens"));
  line(out, "cache", m.cache,
       cat(m.cache_tokens, " tokens, ", m.max_sequences,
           m.max_sequences == 1 ? " sequence" : " sequences", ", context ", m.context, ", rows in ", m.cache_rows));
  for (const MemoryPlan::Region& r : m.regions) {
    line(out, cat("  ", r.name), r.bytes, cat(r.layers, r.layers == 1 ? " layer" : " layers"));
  }
  line(out, "  = per sequence", m.cache_per_sequence, "");
  line(out, "  + per 1024 tokens", static_cast<size_t>(m.cache_per_token * 1024), "");
  if (m.prefix_host > 0) {
    line(out, "prefix cache", m.prefix_host,
         m.prefix_on_device ? "at most" : "at most, in host memory, not in the total");
  }
  line(out, "step inputs", m.workspace, "");
  line(out, "total", m.total(),
       cat(m.fits() ? "fits" : "DOES NOT FIT", ", ", human(m.available), " available"));
  return out;
}

}  // namespace dsv4
