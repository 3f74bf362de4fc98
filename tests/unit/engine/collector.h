// What engine tests share: a sink that keeps everything, and ways to run requests to their ends.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "dsv4/engine.h"
#include "unit/engine/tiny_model.h"

namespace dsv4::testing {

// The tiny model on the reference backend, context 320 where the options say nothing.
inline std::unique_ptr<Engine> load(EngineOptions options = {}) {
  options.model_dir = tiny_model_dir();
  options.device = "reference";
  if (options.context == 0) options.context = 320;
  auto engine = Engine::load(options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(engine).value() : nullptr;
}

struct Outcome {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<bool> forced;
  std::vector<int32_t> prompt;
  std::vector<std::optional<float>> prompt_logprobs;
  std::optional<FinishReason> reason;
  Usage usage;
  Status error;
  int64_t prefilled = 0;
};

class Collector : public EventSink {
 public:
  void on_prefill(RequestId id, int64_t done, int64_t) noexcept override {
    of[id].prefilled = done;
  }
  void on_prompt_token(RequestId id, const TokenEvent& event) noexcept override {
    EXPECT_EQ(event.position, static_cast<int64_t>(of[id].prompt.size()));
    of[id].prompt.push_back(event.token);
    of[id].prompt_logprobs.push_back(event.logprob);
  }
  void on_token(RequestId id, const TokenEvent& event) noexcept override {
    of[id].tokens.push_back(event.token);
    of[id].forced.push_back(event.forced);
    if (event.logprob) of[id].logprobs.push_back(*event.logprob);
  }
  void on_finish(RequestId id, FinishReason reason, const Usage& usage) noexcept override {
    EXPECT_FALSE(of[id].reason) << "finished twice";
    of[id].reason = reason;
    of[id].usage = usage;
  }
  void on_error(RequestId id, const Status& status) noexcept override { of[id].error = status; }

  std::map<RequestId, Outcome> of;
};

inline void run_all(Engine& engine) {
  for (int i = 0; i < 5000; ++i) {
    auto report = engine.step();
    ASSERT_TRUE(report.ok()) << report.status().message();
    if (report->idle()) return;
  }
  FAIL() << "the engine does not come to rest";
}

inline Request request(std::vector<int32_t> prompt, int64_t max_tokens, uint64_t seed = 1) {
  Request r;
  r.prompt = std::move(prompt);
  r.max_tokens = max_tokens;
  r.sampling.seed = seed;
  r.ignore_eos = true;
  return r;
}

inline Outcome alone(Engine& engine, Request r) {
  Collector sink;
  auto id = engine.submit(std::move(r), sink);
  EXPECT_TRUE(id.ok()) << id.status().message();
  if (!id.ok()) return {};
  run_all(engine);
  return sink.of[*id];
}

}  // namespace dsv4::testing
