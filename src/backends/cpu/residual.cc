// Residual streams: embedding, mHC, head; RMSNorm.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/cpu/core.h"
#include "backends/cpu/ops.h"
#include "base/str.h"

namespace dsv4::cpu {
namespace {

// Rows of fn that one item multiplies, and values of D that one item of a stream update covers.
constexpr int64_t kDots = 4;
constexpr int64_t kColumns = 1024;
constexpr int64_t kMaxMix = (2 + kMaxStreams) * kMaxStreams;

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

Status check_streams(std::string_view op, int64_t hc) {
  if (hc >= 1 && hc <= kMaxStreams) return {};
  return Status(Code::kUnsupported, cat(op, ": expected 1 to ", kMaxStreams, " residual streams, found ", hc));
}

// Softmax over each row, then columns and rows divided by their sums (+ eps) in turn.
void sinkhorn(float* c, int64_t hc, int32_t iters, float eps) {
  for (int64_t j = 0; j < hc; ++j) {
    float* row = c + j * hc;
    const float top = *std::max_element(row, row + hc);
    float sum = 0.0f;
    for (int64_t l = 0; l < hc; ++l) sum += row[l] = std::exp(row[l] - top);
    for (int64_t l = 0; l < hc; ++l) row[l] = row[l] / sum + eps;
  }
  float sums[kMaxStreams];
  for (int32_t i = 0; i < std::max(iters, 1); ++i) {
    for (int64_t j = 0; i > 0 && j < hc; ++j) {
      float sum = 0.0f;
      for (int64_t l = 0; l < hc; ++l) sum += c[j * hc + l];
      for (int64_t l = 0; l < hc; ++l) c[j * hc + l] /= sum + eps;
    }
    std::fill(sums, sums + hc, 0.0f);
    for (int64_t j = 0; j < hc; ++j) {
      for (int64_t l = 0; l < hc; ++l) sums[l] += c[j * hc + l];
    }
    for (int64_t j = 0; j < hc; ++j) {
      for (int64_t l = 0; l < hc; ++l) c[j * hc + l] /= sums[l] + eps;
    }
  }
}

// z[t][i] = x_t . fn_i for rows t of streams [*, n], cut into items; the last item of a row leaves the
// sum of squares in squares[t].
struct Projection {
  const RowKernels& k;
  const bf16* streams;
  const int32_t* rows;  // row numbers, or nullptr for 0, 1, ...
  const float* fn;
  int64_t n, outputs;
  float* z;         // [rows, outputs]
  double* squares;  // [rows]

  int64_t items_per_row() const { return ceil_div(outputs, kDots) + 1; }
  const bf16* row(int64_t t) const { return streams + (rows ? rows[t] : t) * n; }
  void run(int64_t item) const {
    const int64_t t = item / items_per_row(), part = item % items_per_row();
    if (part == items_per_row() - 1) {
      squares[t] = k.sum_squares(row(t), n);
      return;
    }
    const int64_t i = part * kDots;
    k.dots(row(t), fn + i * n, n, std::min(kDots, outputs - i), z + t * outputs + i);
  }
  float inverse_rms(int64_t t, float eps) const {
    return 1.0f / std::sqrt(static_cast<float>(squares[t] / static_cast<double>(n)) + eps);
  }
};

// hc_pre, and the sublayer's RMSNorm where `norm` is given.
Status pre(OpContext& ctx, const HcPreArgs& a, const bf16* norm) {
  DSV4_TRY(check_streams("hc_pre", a.hc));
  if (a.T == 0) return {};
  Core& c = core(ctx);
  const int64_t hc = a.hc, mix = (2 + hc) * hc;
  Workspace::Scope scope(ctx.workspace);
  DSV4_ASSIGN(float* z, scope.take<float>(a.T * mix));
  DSV4_ASSIGN(double* squares, scope.take<double>(a.T));
  const Projection projection{.k = c.kernels.rows, .streams = a.streams, .rows = nullptr, .fn = a.mhc.fn,
                              .n = hc * a.D, .outputs = mix, .z = z, .squares = squares};
  auto finish = [&](int64_t t) {
    float values[kMaxMix], weights[kMaxStreams];
    const float r = projection.inverse_rms(t, a.norm_eps);
    for (int64_t i = 0; i < mix; ++i) values[i] = z[t * mix + i] * r;
    const float *base = a.mhc.base, *scale = a.mhc.scale;
    float *post = a.post + t * hc, *comb = a.comb + t * hc * hc;
    for (int64_t j = 0; j < hc; ++j) {
      weights[j] = sigmoid(values[j] * scale[0] + base[j]) + a.mhc.hc_eps;
      post[j] = 2.0f * sigmoid(values[hc + j] * scale[1] + base[hc + j]);
    }
    for (int64_t i = 0; i < hc * hc; ++i) comb[i] = values[2 * hc + i] * scale[2] + base[2 * hc + i];
    sinkhorn(comb, hc, a.mhc.sinkhorn_iters, a.mhc.hc_eps);
    bf16* x = a.x + t * a.D;
    c.kernels.rows.mix(projection.row(t), weights, hc, a.D, 0, a.D, x);
    if (norm) c.kernels.rows.rms_norm(x, norm, a.D, a.norm_eps, x);
  };
  c.pool.run([&](int worker) {
    const IndexRange items = split_range(a.T * projection.items_per_row(), c.pool.threads(), worker);
    for (int64_t i = items.begin; i < items.end; ++i) projection.run(i);
  });
  c.pool.run([&](int worker) {
    const IndexRange rows = split_range(a.T, c.pool.threads(), worker);
    for (int64_t t = rows.begin; t < rows.end; ++t) finish(t);
  });
  return {};
}

}  // namespace

Status embed(OpContext& ctx, const EmbedArgs& a) {
  if (a.table.format != WeightFormat::kBf16) {
    return Status(Code::kUnsupported, "embed: expected a BF16 table");
  }
  for (int64_t t = 0; t < a.T; ++t) {
    if (a.tokens[t] < 0 || a.tokens[t] >= a.table.rows) {
      return Status(Code::kInvalidArgument, cat("embed: expected token ids in 0..", a.table.rows - 1, ", found ",
                                                a.tokens[t]));
    }
  }
  Core& c = core(ctx);
  const bf16* table = weight(a.table).owned.as<bf16>();
  for_items(c.pool, a.T * a.hc, a.T * a.hc * a.D, [&](int64_t i) {
    memcpy(a.streams + i * a.D, table + a.tokens[i / a.hc] * a.D, static_cast<size_t>(a.D) * sizeof(bf16));
  });
  return {};
}

Status hc_pre(OpContext& ctx, const HcPreArgs& a) { return pre(ctx, a, nullptr); }

Status hc_pre_norm(OpContext& ctx, const HcPreNormArgs& a) { return pre(ctx, a.pre, a.norm); }

Status hc_post(OpContext& ctx, const HcPostArgs& a) {
  DSV4_TRY(check_streams("hc_post", a.hc));
  Core& c = core(ctx);
  const int64_t blocks = ceil_div(a.D, kColumns);
  for_items(c.pool, a.T * blocks, a.T * a.hc * a.D, [&](int64_t i) {
    const int64_t t = i / blocks, begin = i % blocks * kColumns;
    c.kernels.rows.post(a.streams + t * a.hc * a.D, a.out + t * a.D, a.post + t * a.hc,
                        a.comb + t * a.hc * a.hc, a.hc, a.D, begin, std::min(a.D, begin + kColumns));
  });
  return {};
}

Status hc_head(OpContext& ctx, const HcHeadArgs& a) {
  DSV4_TRY(check_streams("hc_head", a.hc));
  if (a.R == 0) return {};
  Core& c = core(ctx);
  Workspace::Scope scope(ctx.workspace);
  DSV4_ASSIGN(float* z, scope.take<float>(a.R * a.hc));
  DSV4_ASSIGN(double* squares, scope.take<double>(a.R));
  const Projection projection{.k = c.kernels.rows, .streams = a.streams, .rows = a.rows, .fn = a.fn,
                              .n = a.hc * a.D, .outputs = a.hc, .z = z, .squares = squares};
  c.pool.run([&](int worker) {
    const IndexRange items = split_range(a.R * projection.items_per_row(), c.pool.threads(), worker);
    for (int64_t i = items.begin; i < items.end; ++i) projection.run(i);
  });
  c.pool.run([&](int worker) {
    const IndexRange rows = split_range(a.R, c.pool.threads(), worker);
    for (int64_t t = rows.begin; t < rows.end; ++t) {
      float weights[kMaxStreams];
      const float r = projection.inverse_rms(t, a.norm_eps);
      for (int64_t j = 0; j < a.hc; ++j) {
        weights[j] = sigmoid(z[t * a.hc + j] * r * a.scale[0] + a.base[j]) + a.hc_eps;
      }
      bf16* x = a.x + t * a.D;
      c.kernels.rows.mix(projection.row(t), weights, a.hc, a.D, 0, a.D, x);
      c.kernels.rows.rms_norm(x, a.norm, a.D, a.norm_eps, x);
    }
  });
  return {};
}

Status rms_norm(OpContext& ctx, const RmsNormArgs& a) {
  Core& c = core(ctx);
  for_items(c.pool, a.T, a.T * a.N, [&](int64_t t) {
    c.kernels.rows.rms_norm(a.x + t * a.N, a.w, a.N, a.eps, a.y + t * a.N);
  });
  return {};
}

}  // namespace dsv4::cpu
