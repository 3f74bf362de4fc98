#include "progress.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>

namespace dsv4::apps {
namespace {

using Clock = std::chrono::steady_clock;

std::string amount(const Progress& p) {
  char text[64];
  if (p.unit == "bytes") {
    std::snprintf(text, sizeof text, "%.1f / %.1f GB", static_cast<double>(p.done) / 1e9,
                  static_cast<double>(p.total) / 1e9);
  } else {
    std::snprintf(text, sizeof text, "%lld / %lld %s", static_cast<long long>(p.done),
                  static_cast<long long>(p.total), std::string(p.unit).c_str());
  }
  return text;
}

}  // namespace

ProgressSink terminal_progress() {
  if (!isatty(STDERR_FILENO)) return {};
  auto last = std::make_shared<Clock::time_point>();
  return [last](const Progress& p) {
    constexpr auto kInterval = std::chrono::milliseconds(80);
    const bool finished = p.done >= p.total;
    const auto now = Clock::now();
    if (!finished && now - *last < kInterval) return;
    *last = now;
    if (finished) {
      std::fputs("\r\033[K", stderr);
      return;
    }
    constexpr int kWidth = 30;
    const int filled = static_cast<int>(kWidth * p.done / (p.total > 0 ? p.total : 1));
    std::string bar(static_cast<size_t>(filled), '#');
    bar.resize(kWidth, '.');
    std::fprintf(stderr, "\r\033[K%s [%s] %s", std::string(p.stage).c_str(), bar.c_str(), amount(p).c_str());
    std::fflush(stderr);
  };
}

}  // namespace dsv4::apps
