// An EngineCore over FakeRunner with a clock of its own: thousands of steps in no time.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "engine/engine_core.h"
#include "unit/cache/host_backend.h"
#include "unit/engine/fake_runner.h"

namespace dsv4::testing {

struct SimulationOptions {
  int64_t context = 200;
  int64_t max_sequences = 4;
  int64_t pages = 16;
  int64_t prefill_chunk = 24;
  int64_t step_tokens = 0;
  int64_t max_queue = 0;
  int64_t max_rollback = 3;
  bool prefix = false;
  size_t host_bytes = size_t{1} << 30;
  std::string disk_dir;
};

struct Simulation {
  explicit Simulation(const SimulationOptions& o) {
    const CacheSpec spec = fake_spec();
    EngineCore::Parts parts;
    parts.limits.context = o.context;
    parts.limits.prefill_chunk = o.prefill_chunk;
    parts.limits.max_queue = o.max_queue;
    parts.limits.prompt_logprob_rows = 5;
    parts.limits.cache = {.max_sequences = o.max_sequences,
                          .max_tokens = o.pages * spec.span,
                          .max_rollback = o.max_rollback};
    parts.limits.batch = {
        .max_rows = o.step_tokens ? o.step_tokens : o.prefill_chunk + o.max_sequences,
        .max_sequences = o.max_sequences,
        .max_logit_rows = o.max_sequences + 5,
        .context = o.context};
    parts.vocab_size = FakeRunner::kVocab;
    parts.eos_token = 0;
    auto made = KvCache::make(spec, parts.limits.cache, backend);
    EXPECT_TRUE(made.ok()) << made.status().message();
    parts.cache = std::move(made).value();
    if (o.prefix) {
      parts.limits.prefix = {.enabled = true, .snapshot_spans = 2};
      auto copier = StateCopier::make(spec, *parts.cache, backend);
      std::unique_ptr<DiskStore> disk;
      if (!o.disk_dir.empty()) {
        auto opened = DiskStore::open(o.disk_dir, {7, 7});
        EXPECT_TRUE(opened.ok()) << opened.status().message();
        disk = std::move(opened).value();
      }
      parts.prefix = std::make_unique<PrefixIndex>(
          *parts.cache, std::move(copier).value(),
          PrefixLimits{.host_bytes = o.host_bytes, .disk_bytes = size_t{1} << 30}, std::move(disk));
    }
    auto fake = std::make_unique<FakeRunner>(spec, *parts.cache, parts.limits.batch);
    runner = fake.get();
    // A step costs a little and its rows a little more.
    runner->on_run = [this](int64_t rows) { now += 0.01 + 0.001 * static_cast<double>(rows); };
    parts.runner = std::move(fake);
    parts.clock = [this] { return now; };
    core = std::make_unique<EngineCore>(std::move(parts));
  }

  HostBackend backend;
  double now = 1;
  FakeRunner* runner = nullptr;
  std::unique_ptr<EngineCore> core;
};

}  // namespace dsv4::testing
