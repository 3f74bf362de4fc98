// Load on an OpenAI-compatible server, as its users make it: streams of chat completions that begin
// at fixed concurrency, at random times, or turn after turn of long conversations.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dsv4/status.h"

namespace dsv4::bench {

struct ServeLoad {
  std::string url = "http://127.0.0.1:8000";  // of the server, with or without /v1
  std::string api_key, model;                 // model: empty = the first of /v1/models
  int64_t requests = 64;
  int64_t concurrency = 0;  // at a time; 0 = 8, or without limit where arrivals are random
  double rate = 0;          // arrivals per second at random times (Poisson); 0 = fixed concurrency
  int64_t turns = 1;        // of each conversation; a later one repeats all before it
  int64_t prompt_words = 100;  // of a message
  int64_t shared_words = 0;    // of a system message that all conversations begin with
  int64_t output_tokens = 64;
  bool ignore_eos = true;  // servers that know the option answer with exactly output_tokens
  uint64_t seed = 1;
  double timeout_seconds = 600;  // of one request
};

// One request. Times in seconds since the run began.
struct ServeSample {
  int64_t conversation = 0, turn = 0;
  double start = 0, first_token = 0, end = 0;
  std::vector<double> gaps;  // between one piece of the answer and the next
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  std::string error;  // empty: a complete answer
};

// `progress` is called after each request with the number of those that ended.
Result<std::vector<ServeSample>> run_serve_load(const ServeLoad& load,
                                                const std::function<void(int64_t)>& progress);

}  // namespace dsv4::bench
