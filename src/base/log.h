// The library never prints: it hands lines to a sink that the program chose (or drops them).
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

namespace dsv4 {

enum class LogLevel { kDebug, kInfo, kWarning };

using LogSink = std::function<void(LogLevel, std::string_view line)>;

// Progress of long work: done and total in `unit` ("bytes", "tokens"). Called often; keep it cheap.
struct Progress {
  std::string_view stage;
  int64_t done = 0;
  int64_t total = 0;
  std::string_view unit;
};
using ProgressSink = std::function<void(const Progress&)>;

}  // namespace dsv4
