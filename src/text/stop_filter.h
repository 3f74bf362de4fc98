// StopFilter: ends a text before the first of some strings, as it comes in pieces.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dsv4 {

class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // What is certain not to belong to a stop string. Nothing once one was found.
  std::string push(std::string_view text) {
    if (found_) return {};
    held_ += text;
    size_t end = std::string::npos;
    for (const std::string& stop : stops_) {
      const size_t at = held_.find(stop);
      if (at >= end) continue;
      end = at;
      found_string_ = stop;
    }
    if (end != std::string::npos) {
      found_ = true;
      return take(end);
    }
    // Hold back the longest end that may become a stop string.
    size_t hold = 0;
    for (const std::string& stop : stops_) {
      for (size_t n = std::min(held_.size(), stop.size() - 1); n > hold; --n) {
        if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) hold = n;
      }
    }
    return take(held_.size() - hold);
  }
  // What was held back, at the end of the text.
  std::string finish() { return found_ ? std::string() : take(held_.size()); }
  bool found() const { return found_; }
  // The one that ended the text.
  const std::string& found_string() const { return found_string_; }

 private:
  std::string take(size_t n) {
    std::string out = held_.substr(0, n);
    held_.erase(0, n);
    return out;
  }

  std::vector<std::string> stops_;  // none is empty
  std::string held_, found_string_;
  bool found_ = false;
};

}  // namespace dsv4
