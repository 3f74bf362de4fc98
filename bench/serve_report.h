// What the samples of a load say: figures, a table of the requests, a picture.
#pragma once

#include <string>
#include <vector>

#include "bench/serve_load.h"

namespace dsv4::bench {

struct Percentiles {
  double p50 = 0, p90 = 0, p99 = 0;
};
// Of the nearest rank; zeros for no values.
Percentiles percentiles(std::vector<double> values);

struct ServeReport {
  int64_t requests = 0, failed = 0;
  double seconds = 0;
  Percentiles first_token, gap, whole;  // seconds
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;

  double requests_per_second() const { return seconds > 0 ? static_cast<double>(requests - failed) / seconds : 0; }
  double output_tokens_per_second() const { return seconds > 0 ? static_cast<double>(completion_tokens) / seconds : 0; }
  double hit_rate() const { return prompt_tokens > 0 ? static_cast<double>(cached_tokens) / static_cast<double>(prompt_tokens) : 0; }
};
ServeReport summarise(const std::vector<ServeSample>& samples);

// One line for each request, with a head.
std::string to_csv(const std::vector<ServeSample>& samples);
// How much of the requests had their first token, and of the tokens came, within a time: SVG.
std::string to_svg(const std::vector<ServeSample>& samples, const std::string& title);

}  // namespace dsv4::bench
