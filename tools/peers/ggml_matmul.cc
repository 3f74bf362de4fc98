// Matrix products of ggml (llama.cpp) at the shapes of `dsv4 bench ops`, for docs/BENCHMARKS.md. Not part
// of the build. With ggml's static libraries of a llama.cpp build (-DGGML_NATIVE=ON, Release):
//   g++ -O2 -std=c++20 -I GGML/include ggml_matmul.cc libggml.a libggml-cpu.a libggml-base.a -fopenmp -ldl
//   ./a.out [THREADS [NAME [ROWS]]]
// Weights go round in copies that exceed the cache, in one graph, so that no call waits for another.
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

namespace {

struct Case {
  const char* name;
  ggml_type type;
  int64_t rows, cols;  // of the weight
};

std::vector<float> random_floats(int64_t n, float scale) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& v : values) v = normal(rng);
  return values;
}

// Median microseconds of one product with `tokens` rows of activations; weights lie in `memory`.
double time_product(ggml_backend_t backend, ggml_backend_buffer_type_t memory, const Case& c, int64_t tokens) {
  const size_t row_bytes = ggml_row_size(c.type, c.cols), bytes = row_bytes * static_cast<size_t>(c.rows);
  const int copies = static_cast<int>(std::clamp<size_t>((size_t{96} << 20) / bytes + 1, 2, 64));
  ggml_context* weights = ggml_init({ggml_tensor_overhead() * static_cast<size_t>(copies + 2), nullptr, true});
  std::vector<ggml_tensor*> w;
  for (int i = 0; i < copies; ++i) w.push_back(ggml_new_tensor_2d(weights, c.type, c.cols, c.rows));
  ggml_backend_buffer_t held = ggml_backend_alloc_ctx_tensors_from_buft(weights, memory);
  if (!held) std::exit(1);
  const std::vector<float> row = random_floats(c.cols, 0.05f);
  std::vector<char> packed(bytes);
  for (int64_t r = 0; r < c.rows; ++r) {
    ggml_quantize_chunk(c.type, row.data(), packed.data() + static_cast<size_t>(r) * row_bytes, 0, 1, c.cols, nullptr);
  }
  for (ggml_tensor* t : w) ggml_backend_tensor_set(t, packed.data(), 0, bytes);

  const size_t overhead = ggml_tensor_overhead() * static_cast<size_t>(2 * copies + 64) + ggml_graph_overhead();
  ggml_context* products = ggml_init({overhead, nullptr, true});
  ggml_tensor* x = ggml_new_tensor_2d(products, GGML_TYPE_F32, c.cols, tokens);
  ggml_cgraph* graph = ggml_new_graph(products);
  for (ggml_tensor* t : w) ggml_build_forward_expand(graph, ggml_mul_mat(products, t, x));
  ggml_backend_buffer_t results = ggml_backend_alloc_ctx_tensors(products, backend);
  const std::vector<float> activations = random_floats(c.cols * tokens, 1.0f);
  ggml_backend_tensor_set(x, activations.data(), 0, activations.size() * sizeof(float));

  ggml_backend_graph_compute(backend, graph);
  std::vector<double> us;
  double seconds = 0.0;
  while (us.size() < 5 || seconds < 0.4) {
    const auto begin = std::chrono::steady_clock::now();
    ggml_backend_graph_compute(backend, graph);
    const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    us.push_back(s * 1e6 / copies);
    seconds += s;
  }
  std::sort(us.begin(), us.end());
  ggml_backend_buffer_free(results);
  ggml_backend_buffer_free(held);
  ggml_free(products);
  ggml_free(weights);
  return us[us.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  ggml_backend_t backend = ggml_backend_cpu_init();
  ggml_backend_cpu_set_n_threads(backend, argc > 1 ? std::atoi(argv[1]) : 2);
  ggml_backend_dev_t device = ggml_backend_get_device(backend);
  std::vector<ggml_backend_buffer_type_t> memories = {ggml_backend_get_default_buffer_type(backend)};
  // Layouts that ggml offers for some types: faster ones.
  const auto more = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
      ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
  for (auto* m = more ? more(device) : nullptr; m && *m; ++m) memories.push_back(*m);

  const Case cases[] = {{"expert w1 MXFP4", GGML_TYPE_MXFP4, 2048, 4096}, {"expert w2 MXFP4", GGML_TYPE_MXFP4, 4096, 2048},
                        {"wq_b Q8_0", GGML_TYPE_Q8_0, 32768, 1024},       {"wo_b Q8_0", GGML_TYPE_Q8_0, 4096, 8192},
                        {"head / 8 BF16", GGML_TYPE_BF16, 16160, 4096}};
  for (size_t m = 0; m < memories.size(); ++m) {
    for (const Case& c : cases) {
      if (m > 0 && c.type != GGML_TYPE_MXFP4) continue;  // the one of these types that has such a layout
      if (argc > 2 && std::string(c.name).find(argv[2]) == std::string::npos) continue;
      for (const int64_t tokens : {1, 256}) {
        if (argc > 3 && tokens != std::atoi(argv[3])) continue;
        const double us = time_product(backend, memories[m], c, tokens);
        const double bytes = static_cast<double>(ggml_row_size(c.type, c.cols)) * static_cast<double>(c.rows);
        const double flops = 2.0 * static_cast<double>(c.rows * c.cols * tokens);
        std::printf("%-12s %-16s rows %3lld %10.1f us %7.2f GB/s %8.1f GFLOP/s\n", ggml_backend_buft_name(memories[m]),
                    c.name, static_cast<long long>(tokens), us, bytes / us * 1e-3, flops / us * 1e-3);
        std::fflush(stdout);
      }
    }
  }
  ggml_backend_free(backend);
}
