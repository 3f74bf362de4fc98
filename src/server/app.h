// What all endpoints share.
#pragma once

#include <cstdint>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/constraint.h"
#include "server/engine_thread.h"
#include "server/metrics.h"
#include "text/tokenizer.h"

namespace dsv4::server {

struct ApiOptions {
  std::string model_name;             // the name that requests may use and answers carry
  std::string thinking = "off";       // where a request does not say: off, high or max
  std::vector<std::string> api_keys;  // empty: none is asked for
  std::string cors_origin;            // empty: no CORS headers; "*" or one origin
  int64_t max_choices = 64;           // `n` of a request, prompts times n of /v1/completions
};

struct App {
  App(const ApiOptions& o, std::unique_ptr<Engine> e, Tokenizer t)
      : options(o), tokenizer(std::move(t)), engine(std::move(e)),
        constraints(tokenizer, engine.info().vocab_size, engine.info().eos_token) {}

  const ApiOptions options;
  const Tokenizer tokenizer;
  const std::time_t started = std::time(nullptr);
  Metrics metrics;
  std::function<int64_t()> connections;  // that are open
  EngineThread engine;
  ConstraintMaker constraints;
};

}  // namespace dsv4::server
