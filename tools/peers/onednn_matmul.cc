// Matrix products of oneDNN in BF16 at the shapes of `dsv4 bench ops`, for docs/BENCHMARKS.md. Not part of the
// build. With Debian's libdnnl-dev:
//   g++ -O3 -march=native -fopenmp -std=c++20 onednn_matmul.cc -ldnnl
//   OMP_NUM_THREADS=2 ./a.out [NAME [ROWS [act8]]]
// With "act8" the input is first rounded to E4M3 with a scale for 128 values, as the model's FP8 and FP4 linears define
// it and `dsv4` does: then both compute the same.
// Weights lie in oneDNN's own layout and go round in copies that exceed the cache, each with an input and an output
// of its own, as those of `dsv4 bench ops` do.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <oneapi/dnnl/dnnl.hpp>
#include <random>
#include <string>
#include <vector>

namespace {

struct Case {
  const char* name;
  int64_t rows, cols;  // of the weight
};

// BF16 between 1/2 and 2 and their negatives.
void fill(const dnnl::memory& m) {
  auto* to = static_cast<uint16_t*>(m.get_data_handle());
  std::minstd_rand random(1);
  for (size_t i = 0; i < m.get_desc().get_size() / 2; ++i) to[i] = static_cast<uint16_t>((random() & 0x80ff) | 0x3f00);
}

// Rows of x, K values each, to `out`.
void act8(const dnnl::memory& x, int64_t rows, int64_t K, const dnnl::memory& out) {
  const auto* from = static_cast<const uint16_t*>(x.get_data_handle());
  auto* to = static_cast<uint16_t*>(out.get_data_handle());
  constexpr int64_t kGroup = 128;
#pragma omp parallel for
  for (int64_t g = 0; g < rows * K / kGroup; ++g) {
    const uint16_t* v = from + g * kGroup;
    int most = 0;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < kGroup; ++i) most = std::max(most, v[i] & 0x7fff);
    const float amax = std::bit_cast<float>(static_cast<uint32_t>(most) << 16);
    const uint32_t ratio = std::bit_cast<uint32_t>(std::max(amax, 1e-4f) / 448.0f);
    const uint32_t exponent = (ratio >> 23) + ((ratio & 0x7fffff) != 0);  // of the power of two that is no less
    const float scale = std::bit_cast<float>(exponent << 23), inverse = std::bit_cast<float>((254 - exponent) << 23);
#pragma omp simd
    for (int64_t i = 0; i < kGroup; ++i) {
      const float value = std::bit_cast<float>(static_cast<uint32_t>(v[i]) << 16) * inverse;
      const uint32_t bits = std::bit_cast<uint32_t>(value);
      const float magnitude = std::bit_cast<float>(bits & 0x7fffffffu);
      const uint32_t m = bits & 0x7fffffffu;
      const float normal = std::bit_cast<float>((m + 0x7ffff + (m >> 20 & 1)) & 0xfff00000u);
      const float tiny = (magnitude + 16384.0f) - 16384.0f;  // below 2^-6 codes are 2^-9 apart
      const float rounded = (magnitude < 0x1p-6f ? tiny : normal) * scale;
      to[g * kGroup + i] = static_cast<uint16_t>((std::bit_cast<uint32_t>(rounded) >> 16) | (v[i] & 0x8000));
    }
  }
}

double microseconds(const dnnl::engine& engine, const Case& c, int64_t tokens, bool rounded) {
  using dnnl::memory;
  dnnl::stream stream(engine);
  const memory::desc x({tokens, c.cols}, memory::data_type::bf16, memory::format_tag::ab);
  const memory::desc w({c.cols, c.rows}, memory::data_type::bf16, memory::format_tag::any);
  const memory::desc y({tokens, c.rows}, memory::data_type::bf16, memory::format_tag::ab);
  const dnnl::matmul::primitive_desc chosen(dnnl::matmul::desc(x, w, y), engine);
  const dnnl::matmul product(chosen);
  std::vector<memory> weights, inputs, outputs;
  for (int64_t bytes = 0; bytes < 96 << 20 || weights.size() < 2; bytes += c.rows * c.cols * 2) {
    fill(weights.emplace_back(chosen.weights_desc(), engine));
    fill(inputs.emplace_back(x, engine));
    fill(outputs.emplace_back(y, engine));
  }
  memory act(x, engine);
  std::vector<double> us;
  double seconds = 0.0;
  for (size_t i = 0; us.size() < 5 || seconds < 0.4; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    const size_t copy = i % weights.size();
    if (rounded) act8(inputs[copy], tokens, c.cols, act);
    product.execute(stream, {{DNNL_ARG_SRC, rounded ? act : inputs[copy]}, {DNNL_ARG_WEIGHTS, weights[copy]}, {DNNL_ARG_DST, outputs[copy]}});
    stream.wait();
    const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (i < 2) continue;  // warm-up
    us.push_back(s * 1e6);
    seconds += s;
  }
  std::sort(us.begin(), us.end());
  return us[us.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  const Case cases[] = {{"expert w1", 2048, 4096}, {"expert w2", 4096, 2048}, {"wq_b", 32768, 1024},
                        {"wo_b", 4096, 8192},      {"head / 8", 16160, 4096}};
  for (const Case& c : cases) {
    if (argc > 1 && std::string(c.name).find(argv[1]) == std::string::npos) continue;
    for (int64_t tokens : {1, 256}) {
      if (argc > 2 && tokens != std::atoi(argv[2])) continue;
      const double us = microseconds(engine, c, tokens, argc > 3);
      const double products = static_cast<double>(c.rows) * static_cast<double>(c.cols);
      std::printf("%-10s [%ld, %ld] BF16%s  rows %3ld  %10.1f us  %7.2f GB/s  %8.1f GFLOP/s\n", c.name, c.rows, c.cols,
                  argc > 3 ? " act8" : "", tokens, us, 2e-3 * products / us, 2e-3 * products * static_cast<double>(tokens) / us);
    }
  }
}
