// Counters and histograms of the server, in the text format of Prometheus. Any thread.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "dsv4/types.h"

namespace dsv4::server {

class Metrics {
 public:
  using Duration = std::chrono::steady_clock::duration;

  void http(std::string_view route, int status);
  void request_started();
  // stop, length, tool_calls, cancelled, abandoned or error
  void request_ended(std::string_view outcome);
  void first_token(Duration since_submitted);
  void next_token(Duration since_last);
  void usage(int64_t prompt, int64_t cached, int64_t completion);

  std::string text(const EngineStats& engine, int64_t connections) const;

 private:
  // Upper bounds in seconds grow by sqrt(10) from 100 us.
  struct Histogram {
    static constexpr std::array<double, 13> kBounds = {1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1,
                                                       0.3,  1,    3,    10,   30,   100};
    std::array<int64_t, kBounds.size() + 1> counts{};
    double sum = 0;
    void add(Duration d);
    void print(std::string& out, std::string_view name, std::string_view help) const;
  };

  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, int64_t> http_;
  std::map<std::string, int64_t, std::less<>> ended_;
  int64_t started_ = 0, prompt_ = 0, cached_ = 0, completion_ = 0;
  Histogram first_, next_;
};

}  // namespace dsv4::server
