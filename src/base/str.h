// Building messages: cat("layer ", 3, ": ", x). Numbers through to_string, everything else as is.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>

namespace dsv4 {

template <class T>
void append_one(std::string& out, const T& x) {
  if constexpr (std::is_same_v<T, char>) {
    out.push_back(x);
  } else if constexpr (std::is_same_v<T, bool>) {
    out.append(x ? "true" : "false");
  } else if constexpr (std::is_arithmetic_v<T>) {
    out.append(std::to_string(x));
  } else {
    out.append(std::string_view(x));
  }
}

template <class... Ts>
std::string cat(const Ts&... xs) {
  std::string out;
  (append_one(out, xs), ...);
  return out;
}

}  // namespace dsv4
