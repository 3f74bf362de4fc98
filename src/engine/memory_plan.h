// Limits of an engine as one consistent set, and the memory they cost before anything is allocated.
#pragma once

#include <cstdint>

#include "cache/cache_plan.h"
#include "dsv4/status.h"
#include "dsv4/types.h"
#include "engine/batch_builder.h"
#include "model/config.h"
#include "model/layer_plan.h"
#include "ops/backend.h"

namespace dsv4 {

// EngineOptions with every default filled in and checked against the model.
struct EngineLimits {
  int64_t context = 0;
  int64_t prefill_chunk = 0;
  int64_t max_queue = 0;
  int64_t prompt_logprob_rows = 0;
  PrefixCacheOptions prefix;
  CacheLimits cache;
  BatchLimits batch;
};

// kInvalidArgument names the option, its value and what is possible.
Result<EngineLimits> resolve_limits(const EngineOptions& options, const ModelConfig& config,
                                    const CacheSpec& spec);

// Everything but the weights, which the caller has counted: `weights` bytes copied by the backend,
// `checkpoint` bytes of tensors in the files.
Result<MemoryPlan> plan_memory(const EngineLimits& limits, const ModelConfig& config,
                               const ModelPlan& plan, const CacheSpec& spec, const Backend& backend,
                               size_t weights, size_t checkpoint);

}  // namespace dsv4
