// Attention of one row over window and compressed entries: the keys of a row in chunks of 64, key and value
// from one copy in shared memory. Chunks depend on the row alone and join in order (class Chunks), so a row's
// result does not depend on the batch nor on the kernel: attention_kernel here is for few rows or odd shapes,
// attention_many.cuh for the rest. A block takes one chunk and HM heads. The chunks of a row are one cluster
// whose blocks send each other what they add up (cluster.cuh); rows with too many chunks leave partial sums for
// combine_kernel.
#pragma once

#include <algorithm>

#include "backends/cuda/device/cluster.cuh"
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
inline constexpr int kPagesAhead = kAttentionThreads;  // of a sequence, whose places are known before the kernel ahead is done

struct AttentionParams {
  AttentionArgs a;
  RopeView rope;  // of the result, inverse; freqs == nullptr: none
  int64_t first_row;
  int32_t max_chunks;
  bool cluster;    // the chunks of a row are a cluster; else every two
  float scale;     // d^-1/2, times log2(e): scores, maxima and the sink are exponents of two
  float* partial;  // [rows, max_chunks, H, d], not normalised
  float2* stats;   // [rows, max_chunks, H] maximum and sum
  float *sums, *top, *lse;  // kParts: AttentionPartsArgs
};

__device__ inline int window_keys(const AttentionArgs& a, int position) {
  return min(position + 1, static_cast<int>(a.window));
}
__device__ inline int entry_keys(const AttentionArgs& a, int64_t t, int position) {
  if (!a.entries.data) return 0;
  return a.selected ? a.selected_count[t] : static_cast<int>((position + 1) / a.ratio);
}

// What a block's threads have of the result: two columns each of so many units, which the blocks of a cluster share out.
// They lie where queries and keys were; with few heads a block's own come first, to be sent in a loop: little code. Then
// those of its units that come from all chunks, where a block without keys has brought nothing.
template <int HM, int D>
constexpr int kUnits = HM * D / (2 * kAttentionThreads);
inline constexpr int kUnitBytes = kAttentionThreads * 8;
template <int HM>
constexpr bool kFewHeads = HM == 16;
template <int HM, int D>
constexpr int kOwnBytes = kFewHeads<HM> ? kUnits<HM, D> * kUnitBytes : 0;
template <int HM, int D>
constexpr int attention_rows_bytes() {
  int most = kUnits<HM, D>;
  for (int blocks = 2; blocks <= kMaxChunksOfCluster; ++blocks) {
    most = std::max(most, (kUnits<HM, D> + blocks - 1) / blocks * blocks);
  }
  return std::max((HM + kChunk) * (D + 8) * 2, std::max(kOwnBytes<HM, D>, HM * (D + 8) * 2) * kFewHeads<HM> + most * kUnitBytes);
}
template <int HM, int D>
constexpr int attention_shared_bytes() {
  return attention_rows_bytes<HM, D>() + HM * (kChunk + 8) * 2 + kMaxChunksOfCluster * HM * 8 + (8 + 32 + 2) * HM * 4;
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
  __device__ float top() const { return top_; }
  __device__ float sum() const { return sum_; }

 private:
  float top_ = -INFINITY, sum_ = 0.0f;
};
__device__ inline void add_chunk(const float2& f, float v, float& total) { total = __fmaf_rn(v, f.y, total * f.x); }
__device__ inline void add_chunk(const float2& f, const float2& v, float2& total) {
  add_chunk(f, v.x, total.x);
  add_chunk(f, v.y, total.y);
}
__device__ inline void add_chunk(const float2& f, const float4& v, float4& total) {
  add_chunk(f, v.x, total.x);
  add_chunk(f, v.y, total.y);
  add_chunk(f, v.z, total.z);
  add_chunk(f, v.w, total.w);
}
// Maxima and sums of all chunks become factors.
__device__ inline Chunks join_chunks(int chunks, float2* stats, int stride) {
  Chunks all;
#pragma unroll 1
  for (int i = 0; i < chunks; ++i) {
    float2& s = stats[i * stride];
    const float sum = s.y;
    s = all.raise(s.x);
    all.add(s, sum);
  }
  return all;
}
// The inverse of the sum comes back.
__device__ inline float chunk_factors(int chunks, float sink, float2* stats, int stride) {
  return join_chunks(chunks, stats, stride).inverse(sink);
}

// Columns of the result from `col`, which is even, rotated back where RoPE has them.
__device__ inline uint32_t result_pair(const AttentionParams& p, int col, float2 v, float factor, const float2* turns) {
  v.x *= factor;
  v.y *= factor;
  round2(v.x, v.y);
  const int from = static_cast<int>(p.a.d - p.rope.r);
  if (p.rope.freqs && col >= from) {
    const float2 turn = turns[(col - from) / 2];
    rotate_pair(v.x, v.y, -turn.x, turn.y);
  }
  return pack2(v.x, v.y);
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

// kParts: chunks always leave partial sums.
template <int HM, int D, bool kFp8, bool kParts = false>
__global__ void __launch_bounds__(kAttentionThreads, 1) attention_kernel(const __grid_constant__ AttentionParams p) {
  constexpr int kRow = D + 8;          // of Q and K, elements: rows meet different banks
  constexpr int kPRow = kChunk + 8;
  constexpr int MT = HM / 16, NG = 8 / MT;  // tiles of heads; groups of keys, each of MT tiles of 8
  constexpr int NC = D / 64;                // tiles of 8 output columns per warp
  constexpr int kPieces = D / 16;           // of 16 bytes, of half a row as BF16
  extern __shared__ uint4 shared[];
  __shared__ Arrivals top_here, stats_here, values_here;
  __shared__ float2 turns[kMaxPairs];
  __shared__ float inverse[HM], other_top[HM];
  __shared__ int pages[kPagesAhead];
  __shared__ uint2 scales[kFp8 ? kChunk : 1];
  __shared__ bool packed[kFp8 ? kChunk : 1];
  bf16* q = reinterpret_cast<bf16*>(shared);            // [HM][kRow]
  bf16* k = q + HM * kRow;                              // [kChunk][kRow]
  bf16* probs = reinterpret_cast<bf16*>(reinterpret_cast<char*>(shared) + attention_rows_bytes<HM, D>());  // [HM][kPRow]
  float2* stats = reinterpret_cast<float2*>(probs + HM * kPRow);  // [chunks][HM] maximum and sum
  float* tile_max = reinterpret_cast<float*>(stats + kMaxChunksOfCluster * HM);  // [NG][HM]
  float* lane_sum = tile_max + 8 * HM;                        // [8][HM][4], by pairs of keys: 2 c, 2 c + 1 of a tile of 8
  float2* own_stats = reinterpret_cast<float2*>(lane_sum + 32 * HM);  // [HM]
  uint2* own_values = reinterpret_cast<uint2*>(q);            // [units][threads], after the products
  uint2* values = own_values + (kFewHeads<HM> ? std::max(kOwnBytes<HM, D>, HM * kRow * 2) / 8 : 0);  // [units here][chunks][threads]

  const AttentionArgs& a = p.a;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t t = p.first_row + blockIdx.z;
  const int chunk = blockIdx.x, first_head = blockIdx.y * HM, H = static_cast<int>(a.H);
  const int begin = chunk * kChunk;
  if (threadIdx.x == 0) {
    expect_arrivals(top_here, HM * sizeof(float));
    prepare_arrivals(stats_here);
    prepare_arrivals(values_here);
  }
  block_started();

  // What no kernel of this step writes may be read before the one ahead is done: where rows lie, and
  // rows of the window and of entries that are older than the batch.
  const int position = a.batch.positions[t], seq = a.batch.row_seq[t];
  const int first_row = a.batch.seq_begin[seq], first_position = a.batch.positions[first_row];
  const int64_t slot = a.batch.seq_slot[seq];
  const int window = window_keys(a, position), visible = a.entries.data ? (position + 1) / static_cast<int>(a.ratio) : 0;
  const int32_t* const all_pages = a.batch.seq_pages + seq * a.batch.max_pages;
  const uint32_t per_page = a.entries.data ? static_cast<uint32_t>(a.entries.per_page) : 1, pages_of_2_32 = ~0u / per_page;
  if (a.entries.data && threadIdx.x < a.batch.max_pages) pages[threadIdx.x] = all_pages[threadIdx.x];
  if (p.rope.freqs) make_turns(p.rope, position, static_cast<int>(threadIdx.x), kAttentionThreads, turns);
  __syncthreads();
  const auto entry_row = [&](uint32_t entry) {
    uint32_t page = __umulhi(entry, pages_of_2_32), at = entry - page * per_page;  // of this page or the next one
    if (at >= per_page) {
      ++page;
      at -= per_page;
    }
    const int64_t place = page < kPagesAhead ? pages[page] : all_pages[page];
    return a.entries.data + (place * per_page + at) * a.entries.row_bytes;
  };
  // Each warp brings eight keys; this lane knows where that one of them is whose number it has, modulo 8.
  const int own = warp * 8 + lane % 8, key = begin + own, at = position - window + 1 + key;
  const char* row = nullptr;
  if (key < window) {
    if (at < first_position) row = a.ring.data + (slot * a.ring.rows + at % static_cast<int>(a.ring.rows)) * a.ring.row_bytes;
  } else if (a.entries.data && !a.selected) {
    // A row in FP8 and the next one share what L1 holds as one: the next one must not be new, either.
    const int entry = key - window;
    if ((entry + (kFp8 ? 2 : 1)) * a.ratio <= first_position) row = entry_row(static_cast<uint32_t>(entry));
  }
  const bool old = row;
  const int codes = D - static_cast<int>(a.r);  // of a row in FP8
  const auto copy_queries = [&] {
#pragma unroll 1
    for (int i = threadIdx.x; i < HM * (D / 8); i += kAttentionThreads) {
      const int h = i / (D / 8), column = i % (D / 8) * 8;
      bf16* to = q + h * kRow + column;
      if (first_head + h < H) copy_async_16(to, a.q + (t * H + first_head + h) * D + column);
      else *reinterpret_cast<uint4*>(to) = uint4{0, 0, 0, 0};
    }
  };
  const int own_units = (kUnits<HM, D> - 1 - chunk + p.max_chunks) / p.max_chunks;  // if blocks share them
  const float sink = threadIdx.x < HM ? a.sink[min(first_head + static_cast<int>(threadIdx.x), H - 1)] : 0.0f;
  blocks_started();

  // Old rows, then, by the same code, which is in the instruction cache then, those that the kernel ahead has made.
  bool narrow = kFp8 && old;  // in FP8
  int all = 0, chunks = 0, n = kChunk;  // n not above 0: this chunk has no keys
#pragma unroll 1
  for (int time = 0; time < 2; ++time) {
    if (time == 1) {
      wait_for_previous();
      int entry = key - window, count = visible;
      if (a.entries.data && a.selected) {
        count = a.selected_count[t];
        if (entry >= 0 && entry < a.topk) entry = a.selected[t * a.topk + entry];
      }
      if (kFewHeads<HM>) copy_queries();
      all = window + count;
      chunks = (all + kChunk - 1) / kChunk;
      n = min(all - begin, kChunk);
      if (n <= 0) break;
      if (!kFewHeads<HM>) copy_queries();
      row = nullptr;  // absent, or on its way already
      if (key < all && !old) {
        row = key < window ? reinterpret_cast<const char*>(a.kv + static_cast<int64_t>(first_row + at - first_position) * D)
                           : entry_row(static_cast<uint32_t>(entry));
      }
      narrow = kFp8 && row && key >= window;
    }
    if constexpr (kFp8) {
      if (lane < 8 && narrow) copy_async_8(scales + own, row + codes + 2 * a.r);
      if (lane < 8) packed[own] = narrow || old;
    }
    const uint32_t narrow_rows = kFp8 ? __ballot_sync(~0u, narrow) : 0;
    // The first half of the columns, then the second.
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      constexpr int kAtOnce = std::min(kPieces / 4, 4);
#pragma unroll kAtOnce
      for (int i = lane; i < 8 * kPieces; i += 32) {
        const int j = i / kPieces, column = (half * kPieces + i % kPieces) * 8;
        const auto from = reinterpret_cast<const char*>(__shfl_sync(~0u, reinterpret_cast<uint64_t>(row), j));
        bf16* const to = k + (warp * 8 + j) * kRow;
        if (kFp8 && narrow_rows >> j & 1u) copy_fp8_columns<D>(to, from, column, codes);
        else if (from) copy_async_16(to + column, from + column * 2);
        else if (warp * 8 + j >= n) *reinterpret_cast<uint4*>(to + column) = uint4{0, 0, 0, 0};
      }
      if (time == 1) copy_async_commit();
    }
  }
  if (n <= 0 && (!p.cluster || chunks == 1)) {
    copy_async_wait<0>();
    return;
  }
  const int g = lane / 4, c = lane % 4, sharers = chunks == 1 ? 1 : p.max_chunks;
  const bool other = chunk < kTogether && chunks > 1;  // the first chunks exchange their maxima
  const bool here = !kParts && (chunks == 1 || p.cluster);  // the chunks join in this kernel
  if (here && threadIdx.x == 0) {
    expect_bytes(stats_here, static_cast<uint32_t>(chunks) * HM * sizeof(float2));
    expect_bytes(values_here, static_cast<uint32_t>((chunks == 1 ? kUnits<HM, D> : own_units) * chunks) * kUnitBytes);
  }
  if (n > 0) {
    const int m_tile = warp % MT, group = warp / MT, head = m_tile * 16 + g;  // and head + 8
    // Scores of 16 heads and MT * 8 keys per warp.
    float s[MT][4] = {}, top[2] = {-INFINITY, -INFINITY};
    const bf16* keys = k + group * MT * 8 * kRow;
#pragma unroll 1
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
    }
    if (other) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (group == 0 && c == 0) send(&other_top[head + 8 * i], top[i], top_here, chunk ^ 1);
      }
      wait_arrivals(top_here);
#pragma unroll
      for (int i = 0; i < 2; ++i) top[i] = fmaxf(top[i], other_top[head + 8 * i]);
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
#pragma unroll 1
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
    if (!here) {
      const int64_t at = (static_cast<int64_t>(blockIdx.z) * p.max_chunks + chunk) * H + first_head;
#pragma unroll
      for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int h = m * 16 + g + 8 * i;
          if (first_head + h >= H) continue;
          float* to = p.partial + (at + h) * D + column + 2 * c;
#pragma unroll
          for (int x = 0; x < NC; ++x) *reinterpret_cast<float2*>(to + x * 8) = {o[m][x][2 * i], o[m][x][2 * i + 1]};
        }
      }
      for (int h = threadIdx.x; h < HM && first_head + h < H; h += kAttentionThreads) p.stats[at + h] = own_stats[h];
      return;
    }
    // That they are here says, too, that this block's keys are not needed any more.
    const int h = threadIdx.x % HM;
    const uint2 sum = *reinterpret_cast<const uint2*>(own_stats + h);
#pragma unroll 1
    for (int to = threadIdx.x / HM; to < sharers; to += kAttentionThreads / HM) {
      send(reinterpret_cast<uint2*>(stats + chunk * HM + h), sum, stats_here, to);
    }
    int to = 0, place = chunk;  // block, and where in its values, if there are as many chunks
    const auto give = [&](const uint2& v) {
      send(values + place * kAttentionThreads + threadIdx.x, v, values_here, to);
      if (++to == sharers) {
        to = 0;
        place += chunks;
      }
    };
    const auto unit = [&](int u) -> uint2 {
      const float* const pair = o[u / 2 / NC][u / 2 % NC] + u % 2 * 2;
      return {float_to_bits(pair[0]), float_to_bits(pair[1])};
    };
    if constexpr (kFewHeads<HM>) {
#pragma unroll
      for (int u = 0; u < kUnits<HM, D>; ++u) own_values[u * kAttentionThreads + threadIdx.x] = unit(u);
      wait_arrivals(stats_here);
#pragma unroll 1
      for (int u = 0; u < kUnits<HM, D>; ++u) give(own_values[u * kAttentionThreads + threadIdx.x]);
    } else {
      wait_arrivals(stats_here);
#pragma unroll
      for (int u = 0; u < kUnits<HM, D>; ++u) give(unit(u));
    }
  } else {
    copy_async_wait<0>();
    wait_arrivals(stats_here);
  }

  // The chunks' sums in order.
  if (threadIdx.x < HM) inverse[threadIdx.x] = chunk_factors(chunks, sink, stats + threadIdx.x, HM);
  __syncthreads();
  wait_arrivals(values_here);
  const uint2* value = values + threadIdx.x;
#pragma unroll 1
  for (int u = chunk; u < kUnits<HM, D>; u += sharers) {
    const int local = u / 2 / NC * 16 + u % 2 * 8 + g, col = warp * (D / 8) + u / 2 % NC * 8 + 2 * c;
    float2 sum = {0, 0};
#pragma unroll 2
    for (int x = 0; x < chunks; ++x) {
      add_chunk(stats[x * HM + local], float2{bits_to_float(value->x), bits_to_float(value->y)}, sum);
      value += kAttentionThreads;
    }
    const uint32_t pair = result_pair(p, col, sum, inverse[local], turns);
    if (first_head + local < H) *reinterpret_cast<uint32_t*>(a.o + (t * H + first_head + local) * D + col) = pair;
  }
}

// One block per row and head: chunks in order. kParts: also what joins them with other keys.
inline constexpr int kCombineThreads = 128;
template <bool kParts>
__global__ void __launch_bounds__(kCombineThreads) combine_kernel(const __grid_constant__ AttentionParams p) {
  extern __shared__ float2 stats[];  // [max_chunks]
  __shared__ float2 turns[kMaxPairs];
  __shared__ float inverse, lower;  // lower: 2^(what the total is relative to - the highest score)
  const AttentionArgs& a = p.a;
  const int64_t t = p.first_row + blockIdx.y;
  const int h = blockIdx.x, position = a.batch.positions[t], H = static_cast<int>(a.H), d = static_cast<int>(a.d);
  if (p.rope.freqs) make_turns(p.rope, position, static_cast<int>(threadIdx.x), kCombineThreads, turns);
  wait_for_previous();
  const int chunks = (window_keys(a, position) + entry_keys(a, t, position) + kChunk - 1) / kChunk;
  if (!kParts && chunks == 1) return;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * p.max_chunks;
  for (int i = threadIdx.x; i < chunks; i += kCombineThreads) stats[i] = p.stats[(first + i) * H + h];
  __syncthreads();
  if (threadIdx.x == 0) {
    float top = -INFINITY;
    for (int i = 0; kParts && i < chunks; ++i) top = fmaxf(top, stats[i].x);
    const Chunks all = join_chunks(chunks, stats, 1);
    inverse = all.inverse(a.sink[h]);
    if constexpr (kParts) {
      lower = power_of_two(all.top() - top);
      p.top[t * H + h] = top / kLog2E;
      p.lse[t * H + h] = (all.top() + log2f(all.sum())) / kLog2E;
    }
  }
  __syncthreads();
  for (int col = threadIdx.x * 4; col < d; col += kCombineThreads * 4) {
    float4 sum = {0, 0, 0, 0};
    for (int i = 0; i < chunks; ++i) {
      add_chunk(stats[i], *reinterpret_cast<const float4*>(p.partial + ((first + i) * H + h) * d + col), sum);
    }
    *reinterpret_cast<uint2*>(a.o + (t * H + h) * d + col) = {result_pair(p, col, {sum.x, sum.y}, inverse, turns),
                                                            result_pair(p, col + 2, {sum.z, sum.w}, inverse, turns)};
    if constexpr (kParts) {
      *reinterpret_cast<float4*>(p.sums + (t * H + h) * d + col) = {sum.x * lower, sum.y * lower, sum.z * lower, sum.w * lower};
    }
  }
}

}  // namespace dsv4::cuda
