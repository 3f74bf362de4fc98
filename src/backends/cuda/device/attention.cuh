// Attention of one row over window and compressed entries: the keys of a row in chunks of 64, key and value
// from one copy in shared memory. Chunks depend on the row alone and join in order (class Chunks), so a row's
// result does not depend on the batch nor on the kernel: attention_kernel here is for few rows or odd shapes,
// attention_many.cuh for the rest. A block takes one chunk and HM heads. The chunks of a row are one cluster
// that adds them up through shared memory; rows with too many chunks leave partial sums for combine_kernel.
#pragma once

#include <cooperative_groups.h>

#include "backends/cuda/device/kv_row.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/rows.cuh"
#include "ops/args/attention.h"

namespace dsv4::cuda {

inline constexpr int kChunk = 64;  // keys of a block
inline constexpr int kTogether = 2;  // the first chunks of a row, 128 keys, share the maximum that probabilities are relative to
inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr int kAttentionThreads = 256;
inline constexpr int kMaxChunksOfCluster = 16;

struct AttentionParams {
  AttentionArgs a;
  RopeView rope;  // of the result, inverse; freqs == nullptr: none
  int64_t first_row;
  int32_t max_chunks;
  bool cluster;    // the chunks of a row are a cluster; else every two
  float scale;     // d^-1/2, times log2(e): scores, maxima and the sink are exponents of two
  float* partial;  // [rows, max_chunks, H, d], not normalised
  float2* stats;   // [rows, max_chunks, H] maximum and sum
};

__device__ inline int window_keys(const AttentionArgs& a, int position) {
  return min(position + 1, static_cast<int>(a.window));
}
__device__ inline int entry_keys(const AttentionArgs& a, int64_t t, int position) {
  if (!a.entries.data) return 0;
  return a.selected ? a.selected_count[t] : static_cast<int>((position + 1) / a.ratio);
}

template <int HM, int D>
constexpr int attention_shared_bytes() {
  return (HM + kChunk) * (D + 8) * 2 + HM * (kChunk + 8) * 2 + kChunk * 8 + (8 + 32 + 2) * HM * 4;
}

// 2^x to within 2 ulp, one instruction; below the normal numbers 0.
__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 2^(s scale - top): s is a product of query and key, top the highest one scaled.
__device__ inline float weight(float s, float scale, float top) { return power_of_two(__fmaf_rn(s, scale, -top)); }

// Over the lanes of a head. Sums of a chunk: by lane over its tiles of 8 keys in order, then this.
__device__ inline float sum_of_four(float v) {
  v += __shfl_xor_sync(~0u, v, 1);
  return v + __shfl_xor_sync(~0u, v, 2);
}

// How the chunks of one head join, one after the other. The order and each rounding are part of the result.
class Chunks {
 public:
  // Maximum of the next chunk, an exponent of two; comes back: what the total so far and the chunk are multiplied by.
  // What the total is relative to follows only when it lies more than 8 below: the first factor is mostly 1.
  __device__ float2 raise(float top) {
    const bool far = top > top_ + 8.0f;
    const float2 f = {far ? power_of_two(top_ - top) : 1.0f, far ? 1.0f : power_of_two(top - top_)};
    if (far) top_ = top;
    return f;
  }
  // After raise(): the chunk's sum.
  __device__ void add(const float2& f, float sum) { sum_ = __fmaf_rn(sum, f.y, sum_ * f.x); }
  __device__ float inverse(float sink) const { return 1.0f / (sum_ + power_of_two(sink * kLog2E - top_)); }

 private:
  float top_ = -INFINITY, sum_ = 0.0f;
};
__device__ inline void add_chunk(const float2& f, float v, float& total) { total = __fmaf_rn(v, f.y, total * f.x); }
__device__ inline void add_chunk(const float2& f, const float4& v, float4& total) {
  add_chunk(f, v.x, total.x);
  add_chunk(f, v.y, total.y);
  add_chunk(f, v.z, total.z);
  add_chunk(f, v.w, total.w);
}
// Maxima and sums of all chunks become factors; the inverse of the sum comes back.
__device__ inline float chunk_factors(int chunks, float sink, float2* stats, int stride) {
  Chunks all;
  for (int i = 0; i < chunks; ++i) {
    float2& s = stats[i * stride];
    const float sum = s.y;
    s = all.raise(s.x);
    all.add(s, sum);
  }
  return all.inverse(sink);
}

// Four columns of the result from `col`, rotated back where RoPE has them.
__device__ inline void store_result(const AttentionParams& p, int64_t row, int col, const float4& v, float factor,
                                    const float2* turns) {
  float x[4] = {v.x * factor, v.y * factor, v.z * factor, v.w * factor};
  round4(x);
  const int d = static_cast<int>(p.a.d), from = d - static_cast<int>(p.rope.r);
  if (p.rope.freqs) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      if (col < from) continue;
      const float2 turn = turns[(col + i - from) / 2];
      rotate_pair(x[i], x[i + 1], -turn.x, turn.y);
    }
  }
  *reinterpret_cast<uint2*>(p.a.o + row * d + col) = {pack2(x[0], x[1]), pack2(x[2], x[3])};
}

// Rows of the cache in FP8 come as codes, to the second half of their place as BF16: byte `codes` of it on, of as many
// codes as that. Then the codes of half of the columns become BF16: they fill what is their own place or that of codes before them.
// RoPE dims come to where they stay.
template <int D>
__device__ inline void copy_fp8_columns(bf16* key, const char* row, int column, int codes) {
  char* const to = reinterpret_cast<char*>(key);
  if (column < codes) return copy_async_8(to + codes + column, row + column);
  const char* const from = row + codes + 2 * (column - codes);
  copy_async_8(to + 2 * column, from);
  copy_async_8(to + 2 * column + 8, from + 8);
}
// Columns of a half that are codes; eight lanes take a key, 64 columns at a time.
template <int D>
__device__ inline void widen_keys(bf16* keys, const uint2* scales, const bool* packed, int half, int codes) {
  constexpr int kSteps = (D / 16 + 7) / 8, kTurns = kChunk / (kAttentionThreads / 8);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, end = min((half + 1) * (D / 2), codes);
  const auto column_of = [&](int step) { return half * (D / 2) + step * 64 + lane % 8 * 8; };
  const auto key_of = [&](int turn) { return (turn * 8 + warp) * 4 + lane / 8; };
  const auto each = [&](const auto& f) {  // of the units of this lane that there are
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int key = key_of(turn);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        if (packed[key] && column_of(step) < end) f(turn * kSteps + step, reinterpret_cast<char*>(keys + key * (D + 8)), key, column_of(step));
      }
    }
  };
  const auto scale_of = [&](int key, int column) -> uint32_t { return reinterpret_cast<const uint8_t*>(scales + key)[column / kKv8Group]; };
  uint2 v[kTurns * kSteps];
  uint32_t highest = 0;
  each([&](int unit, const char* key, int, int column) { v[unit] = *reinterpret_cast<const uint2*>(key + codes + column); });
  __syncwarp();
  each([&](int unit, char* key, int row, int column) {
    const uint32_t scale = scale_of(row, column);
    highest = max(highest, scale);
    *reinterpret_cast<uint4*>(key + 2 * column) = widen_codes(v[unit], kv_factor(min(scale, kLargestKvScale)));
  });
  if (highest <= kLargestKvScale) return;
  each([&](int, char* key, int row, int column) {
    uint4& w = *reinterpret_cast<uint4*>(key + 2 * column);
    w = scale_again(w, kv_second_factor(scale_of(row, column)) * 0x10001u);
  });
}

template <int HM, int D, bool kFp8>
__global__ void __launch_bounds__(kAttentionThreads, 1) attention_kernel(const __grid_constant__ AttentionParams p) {
  constexpr int kRow = D + 8;          // of Q and K, elements: rows meet different banks
  constexpr int kPRow = kChunk + 8;
  constexpr int MT = HM / 16, NG = 8 / MT;  // tiles of heads; groups of keys, each of MT tiles of 8
  static_assert(HM * kRow * 4 <= (HM + kChunk) * kRow * 2, "the result takes the place of Q and K");
  constexpr int NC = D / 64;                // tiles of 8 output columns per warp
  extern __shared__ uint4 shared[];
  __shared__ float2 turns[kMaxPairs];
  __shared__ float inverse[HM], own_top[HM];
  __shared__ uint2 scales[kFp8 ? kChunk : 1];
  __shared__ bool packed[kFp8 ? kChunk : 1];
  bf16* q = reinterpret_cast<bf16*>(shared);            // [HM][kRow]
  bf16* k = q + HM * kRow;                              // [kChunk][kRow]
  bf16* probs = k + kChunk * kRow;                      // [HM][kPRow]
  const char** rows = reinterpret_cast<const char**>(probs + HM * kPRow);  // [kChunk]
  float* tile_max = reinterpret_cast<float*>(rows + kChunk);  // [NG][HM]
  float* lane_sum = tile_max + 8 * HM;                        // [8][HM][4], by pairs of keys: 2 c, 2 c + 1 of a tile of 8
  float2* own_stats = reinterpret_cast<float2*>(lane_sum + 32 * HM);  // [HM] maximum and sum
  float* result = reinterpret_cast<float*>(q);                // [HM][kRow], after the products
  float2* stats = reinterpret_cast<float2*>(probs);           // [chunks][HM], likewise

  const AttentionArgs& a = p.a;
  const int64_t t = p.first_row + blockIdx.z;
  const int chunk = blockIdx.x, first_head = blockIdx.y * HM, H = static_cast<int>(a.H);
  const int begin = chunk * kChunk;

  // What no kernel of this step writes may be read before the one ahead is done: where rows lie, and
  // rows of the window and of entries that are older than the batch.
  const int position = a.batch.positions[t], seq = a.batch.row_seq[t];
  const int first_row = a.batch.seq_begin[seq], first_position = a.batch.positions[first_row];
  const int64_t slot = a.batch.seq_slot[seq];
  const int window = window_keys(a, position);
  const auto entry_row = [&](int entry) {
    const int64_t page = a.batch.seq_pages[seq * a.batch.max_pages + entry / a.entries.per_page];
    return a.entries.data + (page * a.entries.per_page + entry % a.entries.per_page) * a.entries.row_bytes;
  };
  const auto old_row = [&](int key) -> const char* {
    if (key < window) {
      const int at = position - window + 1 + key;
      return at < first_position ? a.ring.data + (slot * a.ring.rows + at % a.ring.rows) * a.ring.row_bytes : nullptr;
    }
    const int entry = key - window;
    // A row in FP8 and the next one share what L1 holds as one: the next one must not be new, either.
    const bool old = a.entries.data && !a.selected && (entry + (kFp8 ? 2 : 1)) * a.ratio <= first_position;
    return old ? entry_row(entry) : nullptr;
  };
  const char* const old = threadIdx.x < kChunk ? old_row(begin + static_cast<int>(threadIdx.x)) : nullptr;
  const int codes = D - static_cast<int>(a.r);  // of a row in FP8
  const auto bring_scales = [&](const char* row) {
    packed[threadIdx.x] = row;
    if (row) copy_async_8(scales + threadIdx.x, row + codes + 2 * a.r);
  };
  if (threadIdx.x < kChunk) {
    rows[threadIdx.x] = old;
    if constexpr (kFp8) bring_scales(old);
  } else if (p.rope.freqs) make_turns(p.rope, position, static_cast<int>(threadIdx.x) - kChunk, kAttentionThreads - kChunk, turns);
  __syncthreads();
  for (int i = threadIdx.x; i < kChunk * (D / 8); i += kAttentionThreads) {
    const int j = i / (D / 8), at = i % (D / 8) * 8;
    if (!rows[j]) continue;
    if constexpr (kFp8) copy_fp8_columns<D>(k + j * kRow, rows[j], at, codes);
    else copy_async_16(k + j * kRow + at, rows[j] + at * 2);
  }
  wait_for_previous();

  const int all = window + entry_keys(a, t, position), chunks = (all + kChunk - 1) / kChunk;
  const int n = min(all - begin, kChunk);  // not above 0: this chunk has no keys
  if (n <= 0 && (!p.cluster || chunks == 1)) return;
  // The first chunks exchange their maxima; all of a cluster that are still here meet for it.
  const cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  const bool other = chunk < kTogether && chunks > 1, exchange = chunks > 1 && (p.cluster || other);
  if (n <= 0) cluster.sync();
  if (n > 0) {
    __syncthreads();
    if (threadIdx.x < kChunk) {
      const int key = begin + static_cast<int>(threadIdx.x);
      const char* row = nullptr;  // absent, or on its way already
      if (key < all && !old) {
        const int at = position - window + 1 + key;
        row = key < window ? reinterpret_cast<const char*>(a.kv + static_cast<int64_t>(first_row + at - first_position) * D)
                           : entry_row(a.selected ? a.selected[t * a.topk + key - window] : key - window);
      }
      rows[threadIdx.x] = row;
      if constexpr (kFp8) {
        if (!old) bring_scales(key < window ? nullptr : row);
      }
    }
    __syncthreads();
    // The first half of the columns, then the second.
    constexpr int kPieces = D / 16;  // of a row's half
    for (int half = 0; half < 2; ++half) {
      for (int i = threadIdx.x; i < HM * kPieces; i += kAttentionThreads) {
        const int h = i / kPieces, at = (half * kPieces + i % kPieces) * 8;
        bf16* to = q + h * kRow + at;
        if (first_head + h < H) copy_async_16(to, a.q + (t * H + first_head + h) * D + at);
        else *reinterpret_cast<uint4*>(to) = uint4{0, 0, 0, 0};
      }
      for (int i = threadIdx.x; i < kChunk * kPieces; i += kAttentionThreads) {
        const int j = i / kPieces, at = (half * kPieces + i % kPieces) * 8;
        bf16* to = k + j * kRow + at;
        if (kFp8 && rows[j] && packed[j]) copy_fp8_columns<D>(k + j * kRow, rows[j], at, codes);
        else if (rows[j]) copy_async_16(to, rows[j] + at * 2);
        else if (j >= n) *reinterpret_cast<uint4*>(to) = uint4{0, 0, 0, 0};
      }
      copy_async_commit();
    }

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    const int m_tile = warp % MT, group = warp / MT, head = m_tile * 16 + g;  // and head + 8
    // Scores of 16 heads and MT * 8 keys per warp.
    float s[MT][4] = {}, top[2] = {-INFINITY, -INFINITY};
    const bf16* keys = k + group * MT * 8 * kRow;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half == 0) copy_async_wait<1>();
      else copy_async_wait<0>();
      __syncthreads();
      if constexpr (kFp8) {
        widen_keys<D>(k, scales, packed, half, codes);
        __syncthreads();
      }
#pragma unroll 4
      for (int d = half * (D / 2); d < (half + 1) * (D / 2); d += 32) {
        uint32_t q0[4], q1[4];
        const bf16* at = q + (m_tile * 16 + lane % 16) * kRow + d + lane / 16 * 8;
        ldmatrix(q0, at);
        ldmatrix(q1, at + 16);
#pragma unroll
        for (int j = 0; j < MT; ++j) {
          uint32_t b[4];
          ldmatrix(b, keys + (j * 8 + lane % 8) * kRow + d + lane / 8 * 8);
          const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
          mma_bf16(s[j], q0, b0);
          mma_bf16(s[j], q1, b1);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < MT; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = (group * MT + j) * 8 + 2 * c + i % 2;
        s[j][i] = key < n ? s[j][i] : -INFINITY;
        top[i / 2] = fmaxf(top[i / 2], s[j][i]);
      }
    }
    for (int o = 1; o < 4; o *= 2) {
      top[0] = fmaxf(top[0], __shfl_xor_sync(~0u, top[0], o));
      top[1] = fmaxf(top[1], __shfl_xor_sync(~0u, top[1], o));
    }
    if (c == 0) {
      tile_max[group * HM + head] = top[0];
      tile_max[group * HM + head + 8] = top[1];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      for (int w = 0; w < NG; ++w) top[i] = fmaxf(top[i], tile_max[w * HM + head + 8 * i]);
      if (group == 0 && c == 0) own_top[head + 8 * i] = top[i];
    }
    if (exchange) cluster.sync();
    if (other) {
      const float* tops = cluster.map_shared_rank(own_top, chunk ^ 1);
#pragma unroll
      for (int i = 0; i < 2; ++i) top[i] = fmaxf(top[i], tops[head + 8 * i]);
    }
    for (int i = 0; i < 2; ++i) top[i] *= p.scale;
#pragma unroll
    for (int j = 0; j < MT; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float e0 = weight(s[j][2 * i], p.scale, top[i]), e1 = weight(s[j][2 * i + 1], p.scale, top[i]);
        const int tile = group * MT + j;
        lane_sum[(tile * HM + head + 8 * i) * 4 + c] = e0 + e1;
        *reinterpret_cast<uint32_t*>(probs + (head + 8 * i) * kPRow + tile * 8 + 2 * c) = pack2(e0, e1);
      }
    }
    __syncthreads();
    if (group == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < 8; ++w) sum += lane_sum[(w * HM + head + 8 * i) * 4 + c];
        sum = sum_of_four(sum);
        if (c == 0) own_stats[head + 8 * i] = {top[i], sum};
      }
    }
    // Output columns of this warp, all heads.
    const int column = warp * (D / 8);
    float o[MT][NC][4] = {};
    for (int key = 0; key < kChunk; key += 16) {
      uint32_t pa[MT][4];
#pragma unroll
      for (int m = 0; m < MT; ++m) ldmatrix(pa[m], probs + (m * 16 + lane % 16) * kPRow + key + lane / 16 * 8);
#pragma unroll
      for (int x = 0; x < NC; x += 2) {
        uint32_t b[4];
        const int second = x + 1 < NC ? lane / 16 * 8 : 0;
        ldmatrix_transposed(b, k + (key + lane % 16) * kRow + column + x * 8 + second);
        const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          mma_bf16(o[m][x], pa[m], b0);
          if (x + 1 < NC) mma_bf16(o[m][x + 1 < NC ? x + 1 : x], pa[m], b1);
        }
      }
    }
    __syncthreads();
    const bool here = chunks == 1 || p.cluster;  // or in the partial sums
    const int64_t at = (static_cast<int64_t>(blockIdx.z) * p.max_chunks + chunk) * H + first_head;
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int h = m * 16 + g + 8 * i;
        if (first_head + h >= H) continue;
        float* to = (here ? result + h * kRow : p.partial + (at + h) * D) + column + 2 * c;
#pragma unroll
        for (int x = 0; x < NC; ++x) *reinterpret_cast<float2*>(to + x * 8) = {o[m][x][2 * i], o[m][x][2 * i + 1]};
      }
    }
    if (!here) {
      for (int h = threadIdx.x; h < HM && first_head + h < H; h += kAttentionThreads) p.stats[at + h] = own_stats[h];
      if (other) cluster.sync();  // nobody leaves while the other reads its maxima
      return;
    }
  }

  // The chunks' sums in order, columns shared out among the blocks.
  const int sharers = chunks == 1 ? 1 : p.max_chunks;
  if (sharers > 1) cluster.sync();
  else __syncthreads();
  for (int i = threadIdx.x; i < chunks * HM; i += kAttentionThreads) {
    stats[i] = (sharers > 1 ? cluster.map_shared_rank(own_stats, i / HM) : own_stats)[i % HM];
  }
  __syncthreads();
  for (int h = threadIdx.x; h < HM; h += kAttentionThreads) {
    inverse[h] = chunk_factors(chunks, a.sink[min(first_head + h, H - 1)], stats + h, HM);
  }
  __syncthreads();
  for (int i = chunk * kAttentionThreads + static_cast<int>(threadIdx.x); i < HM * (D / 4); i += sharers * kAttentionThreads) {
    const int local = i / (D / 4), col = i % (D / 4) * 4, h = first_head + local;
    if (h >= H) continue;
    float4 sum = {0, 0, 0, 0};
    for (int x = 0; x < chunks; ++x) {
      const float* from = (sharers > 1 ? cluster.map_shared_rank(result, x) : result) + local * kRow + col;
      add_chunk(stats[x * HM + local], *reinterpret_cast<const float4*>(from), sum);
    }
    store_result(p, t * H + h, col, sum, inverse[local], turns);
  }
  if (sharers > 1) cluster.sync();  // nobody leaves while others read its sums
}

// One block per row and head: chunks in order.
inline constexpr int kCombineThreads = 128;
__global__ void __launch_bounds__(kCombineThreads) combine_kernel(const __grid_constant__ AttentionParams p) {
  extern __shared__ float2 stats[];  // [max_chunks]
  __shared__ float2 turns[kMaxPairs];
  __shared__ float inverse;
  const AttentionArgs& a = p.a;
  const int64_t t = p.first_row + blockIdx.y;
  const int h = blockIdx.x, position = a.batch.positions[t], H = static_cast<int>(a.H), d = static_cast<int>(a.d);
  if (p.rope.freqs) make_turns(p.rope, position, static_cast<int>(threadIdx.x), kCombineThreads, turns);
  wait_for_previous();
  const int chunks = (window_keys(a, position) + entry_keys(a, t, position) + kChunk - 1) / kChunk;
  if (chunks == 1) return;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * p.max_chunks;
  for (int i = threadIdx.x; i < chunks; i += kCombineThreads) stats[i] = p.stats[(first + i) * H + h];
  __syncthreads();
  if (threadIdx.x == 0) inverse = chunk_factors(chunks, a.sink[h], stats, 1);
  __syncthreads();
  for (int col = threadIdx.x * 4; col < d; col += kCombineThreads * 4) {
    float4 sum = {0, 0, 0, 0};
    for (int i = 0; i < chunks; ++i) {
      add_chunk(stats[i], *reinterpret_cast<const float4*>(p.partial + ((first + i) * H + h) * d + col), sum);
    }
    store_result(p, t * H + h, col, sum, inverse, turns);
  }
}

}  // namespace dsv4::cuda
