// Residual streams: embedding, mHC, head mix.
#include <algorithm>
#include <cmath>

#include "backends/reference/kernels.h"
#include "backends/reference/matrix.h"

namespace dsv4::reference {
namespace {

constexpr int64_t kMaxStreams = 8;

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// z[i] = (x . fn_i) * rsqrt(mean(x^2) + eps) over the flattened streams of one row.
void project_streams(const float* x, int64_t n, const float* fn, int64_t outputs, float eps, float* z) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const float r = 1.0f / std::sqrt(static_cast<float>(sum / static_cast<double>(n)) + eps);
  for (int64_t i = 0; i < outputs; ++i) z[i] = static_cast<float>(dot(x, fn + i * n, n)) * r;
}

// Rows, then columns, divided by their sums (+ eps); softmax over each row first.
void sinkhorn(float* c, int64_t hc, int32_t iters, float eps) {
  for (int64_t j = 0; j < hc; ++j) {
    float* row = c + j * hc;
    const float top = *std::max_element(row, row + hc);
    float sum = 0.0f;
    for (int64_t l = 0; l < hc; ++l) sum += row[l] = std::exp(row[l] - top);
    for (int64_t l = 0; l < hc; ++l) row[l] = row[l] / sum + eps;
  }
  auto columns = [&] {
    for (int64_t l = 0; l < hc; ++l) {
      float sum = 0.0f;
      for (int64_t j = 0; j < hc; ++j) sum += c[j * hc + l];
      for (int64_t j = 0; j < hc; ++j) c[j * hc + l] /= sum + eps;
    }
  };
  columns();
  for (int32_t i = 1; i < iters; ++i) {
    for (int64_t j = 0; j < hc; ++j) {
      float sum = 0.0f;
      for (int64_t l = 0; l < hc; ++l) sum += c[j * hc + l];
      for (int64_t l = 0; l < hc; ++l) c[j * hc + l] /= sum + eps;
    }
    columns();
  }
}

// out = BF16(sum_j pre_j X_j), streams as floats [hc, D].
void mix_streams(const float* x, const float* pre, int64_t hc, int64_t D, bf16* out) {
  for (int64_t i = 0; i < D; ++i) {
    float sum = 0.0f;
    for (int64_t j = 0; j < hc; ++j) sum += pre[j] * x[j * D + i];
    out[i] = to_bf16(sum);
  }
}

}  // namespace

Status embed(OpContext& ctx, const EmbedArgs& a) {
  Workspace::Scope scratch(ctx.workspace);
  DSV4_ASSIGN(float* row, scratch.take<float>(a.D));
  const Matrix& table = matrix(a.table);
  for (int64_t t = 0; t < a.T; ++t) {
    table.row(a.tokens[t], row);
    for (int64_t j = 0; j < a.hc; ++j) {
      bf16* out = a.streams + (t * a.hc + j) * a.D;
      for (int64_t i = 0; i < a.D; ++i) out[i] = to_bf16(row[i]);
    }
  }
  return {};
}

Status hc_pre(OpContext& ctx, const HcPreArgs& a) {
  const int64_t hc = a.hc, n = hc * a.D, mix = (2 + hc) * hc;
  Workspace::Scope scratch(ctx.workspace);
  DSV4_ASSIGN(float* x, scratch.take<float>(n));
  DSV4_ASSIGN(float* z, scratch.take<float>(mix));
  DSV4_ASSIGN(float* pre, scratch.take<float>(hc));
  const float* base = a.mhc.base;
  const float* scale = a.mhc.scale;
  for (int64_t t = 0; t < a.T; ++t) {
    for (int64_t i = 0; i < n; ++i) x[i] = to_float(a.streams[t * n + i]);
    project_streams(x, n, a.mhc.fn, mix, a.norm_eps, z);
    float* post = a.post + t * hc;
    float* comb = a.comb + t * hc * hc;
    for (int64_t j = 0; j < hc; ++j) {
      pre[j] = sigmoid(z[j] * scale[0] + base[j]) + a.mhc.hc_eps;
      post[j] = 2.0f * sigmoid(z[hc + j] * scale[1] + base[hc + j]);
    }
    for (int64_t i = 0; i < hc * hc; ++i) comb[i] = z[2 * hc + i] * scale[2] + base[2 * hc + i];
    sinkhorn(comb, hc, a.mhc.sinkhorn_iters, a.mhc.hc_eps);
    mix_streams(x, pre, hc, a.D, a.x + t * a.D);
  }
  return {};
}

Status hc_post(OpContext& ctx, const HcPostArgs& a) {
  (void)ctx;
  if (a.hc > kMaxStreams) return Status(Code::kUnsupported, "hc_post: at most 8 residual streams");
  const int64_t hc = a.hc;
  float x[kMaxStreams];
  for (int64_t t = 0; t < a.T; ++t) {
    const float* post = a.post + t * hc;
    const float* comb = a.comb + t * hc * hc;
    bf16* streams = a.streams + t * hc * a.D;
    for (int64_t i = 0; i < a.D; ++i) {
      const float out = to_float(a.out[t * a.D + i]);
      for (int64_t j = 0; j < hc; ++j) x[j] = to_float(streams[j * a.D + i]);
      for (int64_t l = 0; l < hc; ++l) {
        float mixed = 0.0f;
        for (int64_t j = 0; j < hc; ++j) mixed += comb[j * hc + l] * x[j];
        streams[l * a.D + i] = to_bf16(post[l] * out + mixed);
      }
    }
  }
  return {};
}

Status hc_head(OpContext& ctx, const HcHeadArgs& a) {
  const int64_t hc = a.hc, n = hc * a.D;
  Workspace::Scope scratch(ctx.workspace);
  DSV4_ASSIGN(float* x, scratch.take<float>(n));
  DSV4_ASSIGN(float* pre, scratch.take<float>(hc));
  for (int64_t r = 0; r < a.R; ++r) {
    const bf16* streams = a.streams + a.rows[r] * n;
    for (int64_t i = 0; i < n; ++i) x[i] = to_float(streams[i]);
    project_streams(x, n, a.fn, hc, a.norm_eps, pre);
    for (int64_t j = 0; j < hc; ++j) pre[j] = sigmoid(pre[j] * a.scale[0] + a.base[j]) + a.hc_eps;
    mix_streams(x, pre, hc, a.D, a.x + r * a.D);
  }
  return rms_norm(ctx, {.x = a.x, .w = a.norm, .y = a.x, .T = a.R, .N = a.D, .eps = a.norm_eps});
}

Status stream_add(OpContext& ctx, const StreamAddArgs& a) {
  (void)ctx;
  for (int64_t t = 0; t < a.T; ++t) {
    for (int64_t j = 0; j < a.hc; ++j) {
      for (int64_t i = 0; i < a.D; ++i) {
        const int64_t at = (t * a.hc + j) * a.D + i;
        a.streams[at] = to_bf16(to_float(a.e[t * a.D + i]) + to_float(a.h[at]));
      }
    }
  }
  return {};
}

}  // namespace dsv4::reference
