#include "dsv4/engine.h"

#include <exception>
#include <new>
#include <utility>

#include "api/backends.h"
#include "api/fingerprint.h"
#include "api/generation_config.h"
#include "api/loaded_model.h"
#include "base/str.h"
#include "engine/engine_core.h"
#include "engine/memory_plan.h"

namespace dsv4 {
namespace {

// The libraries below throw when memory ends, and only then; nothing leaves this file by exception.
template <class F>
auto guarded(F&& f) -> decltype(f()) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    return Status(Code::kResourceExhausted,
                  "engine: out of host memory; free some, or use a smaller "
                  "context or fewer sequences");
  } catch (const std::exception& e) {
    return Status(Code::kInternal, cat("engine: ", e.what()));
  }
}

ProgressSink progress_sink(const EngineOptions& options) {
  if (!options.progress) return {};
  return [sink = options.progress](const Progress& p) {
    sink({.stage = p.stage, .done = p.done, .total = p.total, .unit = p.unit});
  };
}

Result<MemoryPlan> plan_opened(const OpenedModel& opened, const EngineLimits& limits,
                               const Backend& backend) {
  DSV4_ASSIGN(const size_t weights,
              packed_weight_bytes(*opened.checkpoint, opened.config, opened.plan, backend));
  return plan_memory(limits, opened.config, opened.plan,
                     make_cache_spec(opened.config, opened.plan), backend, weights,
                     static_cast<size_t>(opened.checkpoint->data_bytes()));
}

Result<EngineLimits> limits_of(const EngineOptions& options, const OpenedModel& opened) {
  return resolve_limits(options, opened.config, make_cache_spec(opened.config, opened.plan));
}

}  // namespace

struct Engine::Parts {
  LoadedModel loaded;
  ModelInfo info;
  std::unique_ptr<EngineCore> core;
};

Engine::Engine(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Engine::~Engine() = default;

Result<MemoryPlan> Engine::plan(const EngineOptions& options) {
  return guarded([&]() -> Result<MemoryPlan> {
    DSV4_ASSIGN(const OpenedModel opened,
                open_model(options.model_dir, {.allow_header_only = true}));
    DSV4_ASSIGN(const EngineLimits limits, limits_of(options, opened));
    DSV4_ASSIGN(const auto backend, make_backend(options.device, options.cache_rows));
    return plan_opened(opened, limits, *backend);
  });
}

Result<std::unique_ptr<Engine>> Engine::load(const EngineOptions& options) {
  return guarded([&]() -> Result<std::unique_ptr<Engine>> {
    DSV4_ASSIGN(OpenedModel opened, open_model(options.model_dir));
    DSV4_ASSIGN(const EngineLimits limits, limits_of(options, opened));
    DSV4_ASSIGN(auto backend, make_backend(options.device, options.cache_rows));
    DSV4_ASSIGN(const MemoryPlan plan, plan_opened(opened, limits, *backend));
    if (options.on_plan) options.on_plan(plan);
    if (!plan.fits()) {
      return Status(
          Code::kResourceExhausted,
          cat(options.model_dir, ": needs ", plan.total(), " bytes, ", plan.available,
              " are available on ", plan.device, "; use a shorter context or fewer sequences"));
    }
    auto parts = std::make_unique<Parts>();
    ModelInfo& info = parts->info;
    info.vocab_size = opened.config.vocab_size;
    info.context = limits.context;
    info.model_context = opened.config.max_position_embeddings;
    info.bos_token = static_cast<int32_t>(opened.config.bos_token_id);
    info.eos_token = static_cast<int32_t>(opened.config.eos_token_id);
    info.device = plan.device;
    DSV4_ASSIGN(info.sampling, load_generation_config(options.model_dir, info.vocab_size));
    DSV4_ASSIGN(parts->loaded,
                load_model(std::move(opened), std::move(backend), progress_sink(options)));
    const Hash128 identity =
        fingerprint(options.model_dir, *parts->loaded.checkpoint, *parts->loaded.backend);
    DSV4_ASSIGN(parts->core, EngineCore::make(*parts->loaded.model, limits, *parts->loaded.backend,
                                              parts->loaded.backend->ops(), identity,
                                              progress_sink(options)));
    info.recorded_steps = parts->core->warm_up().steps;
    info.warm_up_seconds = parts->core->warm_up().seconds;
    return std::unique_ptr<Engine>(new Engine(std::move(parts)));
  });
}

const ModelInfo& Engine::info() const {
  return parts_->info;
}

Result<RequestId> Engine::submit(Request request, EventSink& sink) {
  return guarded([&] { return parts_->core->submit(std::move(request), sink); });
}
Status Engine::cancel(RequestId id) {
  return guarded([&] { return parts_->core->cancel(id); });
}
Result<StepReport> Engine::step() {
  return guarded([&] { return parts_->core->step(); });
}
Status Engine::run(std::stop_token stop) {
  while (!stop.stop_requested()) {
    const auto report = step();
    if (!report.ok()) return report.status();
    if (report->idle()) parts_->core->wait(stop);
  }
  return {};
}
EngineStats Engine::stats() const {
  return parts_->core->stats();
}
SessionId Engine::open_session() {
  return parts_->core->open_session();
}
Status Engine::close_session(SessionId id) {
  return guarded([&] { return parts_->core->close_session(id); });
}

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEos:
      return "eos";
    case FinishReason::kStopToken:
      return "stop_token";
    case FinishReason::kMaxTokens:
      return "max_tokens";
    case FinishReason::kContext:
      return "context";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

}  // namespace dsv4
