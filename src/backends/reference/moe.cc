// Router and experts.
#include <algorithm>
#include <cmath>

#include "backends/reference/kernels.h"
#include "backends/reference/matrix.h"

namespace dsv4::reference {
namespace {

float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// Weights of one expert, and where it reads and writes.
struct Expert {
  const Matrix &w1, &w3, &w2;
};

// out[n, D] (FP32 of the BF16 result) = w2 h for n rows of x [n, D] (BF16); weight[n] multiplies h.
struct ExpertScratch {
  float *input, *a, *u, *row;
  bf16* h;
};

void run_expert(const Expert& e, const bf16* x, const float* weight, int64_t n, float limit,
                const ExpertScratch& s, float* out) {
  const int64_t I = e.w1.rows, D = e.w1.cols;
  linear_input(e.w1.format, x, n, D, s.input);
  multiply(e.w1, 0, I, s.input, D, n, s.a, I, s.row);
  if (e.w3.format != e.w1.format) linear_input(e.w3.format, x, n, D, s.input);
  multiply(e.w3, 0, I, s.input, D, n, s.u, I, s.row);
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t i = r * I; i < (r + 1) * I; ++i) {
      const float a = std::min(round_bf16(s.a[i]), limit);
      const float u = std::clamp(round_bf16(s.u[i]), -limit, limit);
      const float silu = a / (1.0f + std::exp(-a));
      s.h[i] = to_bf16(silu * u * weight[r]);
    }
  }
  linear_input(e.w2.format, s.h, n, I, s.input);
  multiply(e.w2, 0, D, s.input, I, n, out, D, s.row);
  for (int64_t i = 0; i < n * D; ++i) out[i] = round_bf16(out[i]);
}

}  // namespace

Status router(OpContext& ctx, const RouterArgs& a) {
  Workspace::Scope scratch(ctx.workspace);
  DSV4_ASSIGN(float* x, scratch.take<float>(a.D));
  DSV4_ASSIGN(float* row, scratch.take<float>(a.D));
  DSV4_ASSIGN(float* score, scratch.take<float>(a.E));
  DSV4_ASSIGN(int32_t* order, scratch.take<int32_t>(a.E));
  const Matrix& gate = matrix(a.gate);
  for (int64_t t = 0; t < a.T; ++t) {
    linear_input(gate.format, a.x + t * a.D, 1, a.D, x);
    multiply(gate, 0, a.E, x, a.D, 1, score, a.E, row);
    for (int64_t e = 0; e < a.E; ++e) score[e] = std::sqrt(softplus(score[e]));
    int32_t* ids = a.ids + t * a.k;
    if (a.tid2eid) {
      std::copy_n(a.tid2eid + a.tokens[t] * a.k, a.k, ids);
    } else {
      for (int64_t e = 0; e < a.E; ++e) order[e] = static_cast<int32_t>(e);
      std::partial_sort(order, order + a.k, order + a.E, [&](int32_t p, int32_t q) {
        const float sp = score[p] + a.bias[p], sq = score[q] + a.bias[q];
        return sp != sq ? sp > sq : p < q;
      });
      std::copy_n(order, a.k, ids);
    }
    float sum = 0.0f;
    for (int64_t i = 0; i < a.k; ++i) sum += score[ids[i]];
    for (int64_t i = 0; i < a.k; ++i) a.weights[t * a.k + i] = score[ids[i]] / sum * a.scaling;
  }
  return {};
}

Status moe(OpContext& ctx, const MoeArgs& a) {
  const int64_t T = a.T, D = a.D, widest = std::max({a.I, a.shared_I, a.D});
  Workspace::Scope scratch(ctx.workspace);
  DSV4_ASSIGN(float* sum, scratch.take<float>(T * D));
  DSV4_ASSIGN(float* out, scratch.take<float>(T * D));
  DSV4_ASSIGN(bf16* x, scratch.take<bf16>(T * D));
  DSV4_ASSIGN(float* weight, scratch.take<float>(T));
  DSV4_ASSIGN(int64_t* token, scratch.take<int64_t>(T));
  ExpertScratch s{};
  DSV4_ASSIGN(s.input, scratch.take<float>(T * widest));
  DSV4_ASSIGN(s.a, scratch.take<float>(T * widest));
  DSV4_ASSIGN(s.u, scratch.take<float>(T * widest));
  DSV4_ASSIGN(s.row, scratch.take<float>(widest));
  DSV4_ASSIGN(s.h, scratch.take<bf16>(T * widest));

  std::fill(sum, sum + T * D, 0.0f);
  // Experts in ascending id: the order in which every token adds its experts up.
  for (int64_t e = 0; e < a.E; ++e) {
    int64_t n = 0;
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t i = 0; i < a.k; ++i) {
        if (a.ids[t * a.k + i] != e) continue;
        std::copy_n(a.x + t * D, D, x + n * D);
        weight[n] = a.weights[t * a.k + i];
        token[n++] = t;
      }
    }
    if (n == 0) continue;
    run_expert({matrix(a.w1, e), matrix(a.w3, e), matrix(a.w2, e)}, x, weight, n, a.limit, s, out);
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t i = 0; i < D; ++i) sum[token[r] * D + i] += out[r * D + i];
    }
  }
  std::fill(weight, weight + T, 1.0f);
  run_expert({matrix(a.shared_w1), matrix(a.shared_w3), matrix(a.shared_w2)}, a.x, weight, T, a.limit, s, out);
  for (int64_t i = 0; i < T * D; ++i) a.y[i] = to_bf16(sum[i] + out[i]);
  return {};
}

}  // namespace dsv4::reference
