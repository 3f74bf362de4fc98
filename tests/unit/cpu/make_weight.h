// Random published weights for tests of the cpu backend.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "formats/bf16.h"
#include "formats/weight_format.h"
#include "ops/context.h"

namespace dsv4::tests {

inline std::vector<bf16> random_bf16(size_t n, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<bf16> x(n);
  for (bf16& v : x) v = to_bf16(normal(rng));
  return x;
}

// The bytes of `count` matrices of one format, and the request that names them.
struct Published {
  std::vector<std::vector<uint8_t>> weights, scales;
  PackRequest request;

  Published(WeightRole role, WeightFormat format, int64_t rows, int64_t cols, int64_t count, int64_t groups,
            uint32_t seed) {
    std::mt19937 rng(seed);
    request = {.role = role, .rows = rows, .cols = cols, .groups = groups};
    const FormatInfo& info = format_info(format);
    for (int64_t i = 0; i < count; ++i) {
      std::vector<uint8_t> w(static_cast<size_t>(weight_bytes(format, rows, cols)));
      std::vector<uint8_t> s(static_cast<size_t>(scale_bytes(format, rows, cols)));
      for (uint8_t& b : w) b = static_cast<uint8_t>(rng());
      if (format == WeightFormat::kFp8Tile128) {
        for (uint8_t& b : w) b = (b & 0x7f) == 0x7f ? 0x30 : b;  // no NaN
      } else if (format == WeightFormat::kBf16) {
        const std::vector<bf16> values = random_bf16(w.size() / 2, seed);
        memcpy(w.data(), values.data(), w.size());
      } else if (format == WeightFormat::kF32) {
        for (size_t at = 0; at + 4 <= w.size(); at += 4) {
          const float v = to_float(random_bf16(1, static_cast<uint32_t>(rng()))[0]) * 1.001f;
          memcpy(w.data() + at, &v, 4);
        }
      }
      for (uint8_t& b : s) b = static_cast<uint8_t>(info.scale_dtype == DType::kE8M0 ? 118 + rng() % 8 : 0x28 + rng() % 16);
      weights.push_back(std::move(w));
      scales.push_back(std::move(s));
    }
    for (size_t i = 0; i < weights.size(); ++i) {
      WeightSource source{.format = format, .weight = {.data = weights[i].data()}};
      if (!scales[i].empty()) source.scale = {.data = scales[i].data()};
      if (info.has_global_scale) source.global_scale = 0.37f;
      request.sources.push_back(source);
    }
  }
};

inline std::unique_ptr<Backend> cpu(int threads, const std::string& isa = "") {
  auto backend = make_cpu_backend({.threads = threads, .isa = isa});
  return backend.ok() ? std::move(*backend) : nullptr;
}

// A backend with what an op needs to run.
struct Machine {
  std::unique_ptr<Backend> backend;
  Workspace workspace;
  std::unique_ptr<Stream> stream;
  OpContext context;

  explicit Machine(std::unique_ptr<Backend> b)
      : backend(std::move(b)), workspace(*backend), stream(*backend->make_stream()),
        context{*backend, backend->ops(), *stream, workspace} {}
};

}  // namespace dsv4::tests
