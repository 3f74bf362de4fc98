// Attention, index scores and pooling. Heads lie across lanes for the scores and columns of the value
// rows for the output, so that neither needs a reduction across lanes.
#define DSV4_CPU_NO_BF16
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/attention_kernels.cc"
#include "backends/cpu/targets.h"
#include <hwy/foreach_target.h>  // IWYU pragma: keep

#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/cpu/decode-inl.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/simd-inl.h"
#include "formats/kv_row.h"

HWY_BEFORE_NAMESPACE();
namespace dsv4::cpu::HWY_NAMESPACE {

// Values that one FP32 chain adds before it joins the total.
constexpr int64_t kChain = 32;
constexpr size_t kRows = 6;
#if HWY_TARGET == HWY_AVX3
constexpr size_t kCols = 4;
#else
constexpr size_t kCols = 2;
#endif

// out[r][c] += sum_k x(r, k) * w[k][c] over k < depth; x(r, k) = x[r * x_stride + k] where kByRow, else
// x[k * x_stride + r].
struct BlockArgs {
  const float* x;
  int64_t x_stride;
  const float* w;
  int64_t w_stride;
  float* out;
  int64_t out_stride;
  int64_t depth;
};

template <size_t kR, size_t kC, bool kByRow>
HWY_INLINE void block(const BlockArgs& a) {
  const DF df;
  VF acc[kR][kC];
  DSV4_UNROLL
  for (size_t r = 0; r < kR; ++r) {
    DSV4_UNROLL
    for (size_t c = 0; c < kC; ++c) acc[r][c] = hn::Zero(df);
  }
  const float* w = a.w;
  const float* x = a.x;
  for (int64_t k = 0; k < a.depth; ++k, w += a.w_stride, x += kByRow ? 1 : a.x_stride) {
    VF value[kC];
    DSV4_UNROLL
    for (size_t c = 0; c < kC; ++c) value[c] = hn::LoadU(df, w + c * kLanes);
    DSV4_UNROLL
    for (size_t r = 0; r < kR; ++r) {
      const VF xr = hn::Set(df, kByRow ? x[static_cast<int64_t>(r) * a.x_stride] : x[r]);
      DSV4_UNROLL
      for (size_t c = 0; c < kC; ++c) acc[r][c] = hn::MulAdd(xr, value[c], acc[r][c]);
    }
  }
  DSV4_UNROLL
  for (size_t r = 0; r < kR; ++r) {
    DSV4_UNROLL
    for (size_t c = 0; c < kC; ++c) {
      float* out = a.out + static_cast<int64_t>(r) * a.out_stride + c * kLanes;
      hn::StoreU(hn::Add(acc[r][c], hn::LoadU(df, out)), df, out);
    }
  }
}

template <size_t kR, bool kByRow>
HWY_INLINE void block_rows(size_t rows, size_t vectors, const BlockArgs& a) {
  if (rows == kR) {
    if (vectors == kCols) {
      block<kR, kCols, kByRow>(a);
    } else {
      block<kR, 1, kByRow>(a);
    }
  } else if constexpr (kR > 1) {
    block_rows<kR - 1, kByRow>(rows, vectors, a);
  }
}

// All of `rows` x `columns` (a multiple of 16).
template <bool kByRow>
HWY_INLINE void blocks(int64_t rows, int64_t columns, const BlockArgs& a) {
  for (int64_t c = 0; c < columns;) {
    const size_t vectors = static_cast<size_t>(columns - c) / kLanes >= kCols ? kCols : 1;
    for (int64_t r = 0; r < rows; r += static_cast<int64_t>(kRows)) {
      BlockArgs b = a;
      b.x += kByRow ? r * a.x_stride : r;
      b.w += c;
      b.out += r * a.out_stride + c;
      block_rows<kRows, kByRow>(std::min(kRows, static_cast<size_t>(rows - r)), vectors, b);
    }
    c += static_cast<int64_t>(vectors * kLanes);
  }
}

void widen(const bf16* x, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + static_cast<int64_t>(kLanes) <= n; i += static_cast<int64_t>(kLanes)) {
    hn::StoreU(load_bf16(x + i), DF(), out + i);
  }
  for (; i < n; ++i) out[i] = to_float(x[i]);
}

void widen_kv(const uint8_t* row, int64_t d, int64_t r, float* out) {
  const int64_t codes = d - r;
  const uint8_t* scales = row + codes + 2 * r;
  for (int64_t at = 0; at < codes; at += kKv8Group) {
    const int64_t end = std::min<int64_t>(codes, at + kKv8Group);
    const float scale = ue8m0_to_float(scales[at / kKv8Group]);
    // e4m3_high gives the value times 2^-8; 2^8 times the scale alone may not be a float.
    const VF times = hn::Set(DF(), scale), raise = hn::Set(DF(), 256.0f);
    int64_t i = at;
    for (; i + static_cast<int64_t>(kLanes) <= end; i += static_cast<int64_t>(kLanes)) {
      const auto code = hn::ShiftLeft<8>(hn::PromoteTo(DH(), hn::LoadU(DB(), row + i)));
      hn::StoreU(hn::Mul(hn::Mul(e4m3_high(code), raise), times), DF(), out + i);
    }
    for (; i < end; ++i) out[i] = e4m3_to_float(row[i]) * scale;
  }
  widen(reinterpret_cast<const bf16*>(row + codes), r, out + codes);
}

void scores(const float* q, int64_t heads, const float* keys, int64_t key_stride, int64_t n, int64_t d,
            float* s) {
  memset(s, 0, static_cast<size_t>(n * heads) * sizeof(float));
  for (int64_t k = 0; k < d; k += kChain) {
    blocks<true>(n, heads, {.x = keys + k, .x_stride = key_stride, .w = q + k * heads, .w_stride = heads,
                            .out = s, .out_stride = heads, .depth = std::min(kChain, d - k)});
  }
}

void softmax16(float* s, int64_t stride, int64_t n, float scale, const float* sink, const Softmax16& to) {
  const DF df;
  const VF scale_v = hn::Set(df, scale);
  for (size_t p = 0; p < kParts; ++p) {
    float* column = s + p * kLanes;
    VF top = hn::Set(df, -INFINITY);
    for (int64_t j = 0; j < n; ++j) {
      const VF v = hn::Mul(hn::LoadU(df, column + j * stride), scale_v);
      hn::StoreU(v, df, column + j * stride);
      top = hn::Max(top, v);
    }
    VF total = hn::Exp(df, hn::Sub(hn::LoadU(df, sink + p * kLanes), top)), of_keys = hn::Zero(df);
    for (int64_t j = 0; j < n;) {
      VF sum = hn::Zero(df);
      for (const int64_t end = std::min(n, j + kChain); j < end; ++j) {
        const VF e = hn::Exp(df, hn::Sub(hn::LoadU(df, column + j * stride), top));
        sum = hn::Add(sum, e);
        hn::StoreU(rounded_bf16(e), df, column + j * stride);
      }
      total = hn::Add(total, sum);
      of_keys = hn::Add(of_keys, sum);
    }
    hn::StoreU(top, df, to.top + p * kLanes);
    hn::StoreU(of_keys, df, to.sum + p * kLanes);
    hn::StoreU(total, df, to.denominator + p * kLanes);
  }
}

void weighted_sum(const float* p, int64_t p_stride, const float* keys, int64_t key_stride, int64_t n,
                  int64_t heads, int64_t columns, float* out) {
  memset(out, 0, static_cast<size_t>(heads * columns) * sizeof(float));
  for (int64_t j = 0; j < n; j += kChain) {
    blocks<false>(heads, columns, {.x = p + j * p_stride, .x_stride = p_stride, .w = keys + j * key_stride,
                                   .w_stride = key_stride, .out = out, .out_stride = columns,
                                   .depth = std::min(kChain, n - j)});
  }
}

void divide_round(const float* x, float denominator, int64_t n, bf16* out) {
  const VF d = hn::Set(DF(), denominator);
  int64_t i = 0;
  for (; i + static_cast<int64_t>(kLanes) <= n; i += static_cast<int64_t>(kLanes)) {
    store_bf16(hn::Div(hn::LoadU(DF(), x + i), d), out + i);
  }
  for (; i < n; ++i) out[i] = to_bf16(x[i] / denominator);
}

void index_scores(const float* s, int64_t heads, int64_t n, const float* weights, float* out) {
  const DF df;
  for (int64_t j = 0; j < n; ++j) {
    V16 sum = set16(0.0f);
    for (int64_t h = 0; h < heads; h += 16) {
      V16 dot = load16(s + j * heads + h);
      DSV4_UNROLL
      for (size_t i = 0; i < kParts; ++i) dot.v[i] = hn::Max(dot.v[i], hn::Zero(df));
      sum = fma16(dot, load16(weights + h), sum);
    }
    alignas(64) float lanes[16];
    store16(sum, lanes);
    for (int width = 8; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    out[j] = lanes[0];
  }
}

void pool16(const PoolRow* rows, int64_t n, int64_t column, float* out) {
  const DF df;
  for (size_t part = 0; part < kParts; ++part) {
    const int64_t at = column + static_cast<int64_t>(part * kLanes);
    auto score = [&](const PoolRow& r) HWY_ATTR {
      const VF s = hn::LoadU(df, r.s + at);
      return r.ape ? hn::Add(s, hn::LoadU(df, r.ape + at)) : s;
    };
    VF top = hn::Set(df, -INFINITY);
    for (int64_t i = 0; i < n; ++i) top = hn::Max(top, score(rows[i]));
    VF sum = hn::Zero(df);
    for (int64_t i = 0; i < n; ++i) sum = hn::Add(sum, hn::Exp(df, hn::Sub(score(rows[i]), top)));
    VF pooled = hn::Zero(df);
    for (int64_t i = 0; i < n; ++i) {
      const VF weight = hn::Div(hn::Exp(df, hn::Sub(score(rows[i]), top)), sum);
      pooled = hn::Add(pooled, hn::Mul(hn::LoadU(df, rows[i].c + at), weight));
    }
    hn::StoreU(pooled, df, out + part * kLanes);
  }
}

AttentionKernels attention_table() {
  return {.widen = widen,
          .widen_kv = widen_kv,
          .scores = scores,
          .softmax16 = softmax16,
          .weighted_sum = weighted_sum,
          .divide_round = divide_round,
          .index_scores = index_scores,
          .pool16 = pool16};
}

}  // namespace dsv4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dsv4::cpu {
HWY_EXPORT(attention_table);
AttentionKernels attention_kernels() { return HWY_DYNAMIC_DISPATCH(attention_table)(); }
}  // namespace dsv4::cpu
#endif
