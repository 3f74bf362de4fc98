// The models that engine tests run: the small published-layout checkpoints beside the checkout.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "api/loaded_model.h"
#include "engine/runner.h"

namespace dsv4::testing {

inline std::vector<std::string> model_dirs() {
  std::vector<std::string> dirs;
  for (const char* name : {"tiny-flash", "tiny-pro"}) {
    const std::string dir = std::string("../shared/golden/") + name;
    if (std::filesystem::exists(dir + "/config.json")) dirs.push_back(dir);
  }
  return dirs;
}

// A reproducible prompt without meaning.
inline std::vector<int32_t> some_tokens(int64_t n, int64_t vocab, uint32_t seed) {
  std::vector<int32_t> tokens;
  uint32_t x = seed * 2654435761u + 1;
  for (int64_t i = 0; i < n; ++i) {
    x = x * 1664525u + 1013904223u;
    tokens.push_back(static_cast<int32_t>((x >> 8) % static_cast<uint32_t>(vocab)));
  }
  return tokens;
}

}  // namespace dsv4::testing
