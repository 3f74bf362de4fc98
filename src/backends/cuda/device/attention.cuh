// Attention of one row over window and compressed entries, one kernel for decode and prefill: the keys of
// a row in chunks of 128 (a block each), HM heads together, key and value from one copy in shared
// memory, softmax on the way. Chunks depend on the row alone, so its result does not depend on the
// batch. Rows of more than one chunk leave partial sums for combine_kernel.
#pragma once

#include "backends/cuda/device/mma.cuh"
#include "formats/bf16.h"
#include "ops/args/attention.h"

namespace dsv4::cuda {

inline constexpr int kChunk = 128;  // keys of one block
inline constexpr int kKeyTile = 64;
inline constexpr int kAttentionThreads = 256;

struct AttentionParams {
  AttentionArgs a;
  int64_t first_row;
  int32_t max_chunks;
  float scale;     // d^-1/2
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
  return (HM + kChunk) * (D + 8) * 2 + HM * (kKeyTile + 8) * 2 + kChunk * 8 + (16 + 3) * HM * 4;
}

template <int HM, int D>
__global__ void __launch_bounds__(kAttentionThreads, 1) attention_kernel(const __grid_constant__ AttentionParams p) {
  wait_for_previous();
  constexpr int kRow = D + 8;          // of Q and K, elements: rows meet different banks
  constexpr int kPRow = kKeyTile + 8;
  constexpr int MT = HM / 16, NG = 8 / MT;  // tiles of heads; groups of keys, each of MT tiles of 8
  constexpr int NC = D / 64;                // tiles of 8 output columns per warp
  extern __shared__ uint4 shared[];
  bf16* q = reinterpret_cast<bf16*>(shared);            // [HM][kRow]
  bf16* k = q + HM * kRow;                              // [kChunk][kRow]
  bf16* probs = k + kChunk * kRow;                      // [HM][kPRow]
  const char** rows = reinterpret_cast<const char**>(probs + HM * kPRow);  // [kChunk]
  float* tile_max = reinterpret_cast<float*>(rows + kChunk);  // [NG][HM]
  float* tile_sum = tile_max + 8 * HM;                        // [8][HM]
  float* run_max = tile_sum + 8 * HM;                         // [HM]
  float* run_sum = run_max + HM;
  float* rescale = run_sum + HM;

  const AttentionArgs& a = p.a;
  const int64_t t = p.first_row + blockIdx.z;
  const int chunk = blockIdx.x, first_head = blockIdx.y * HM, H = static_cast<int>(a.H);
  const int position = a.batch.positions[t];
  const int window = window_keys(a, position), all = window + entry_keys(a, t, position);
  const int begin = chunk * kChunk;
  if (begin >= all) return;
  const int n = min(all - begin, kChunk);

  const int seq = a.batch.row_seq[t];
  for (int j = threadIdx.x; j < kChunk; j += kAttentionThreads) {
    const char* row = nullptr;
    const int key = begin + j;
    if (j >= n) {
    } else if (key < window) {
      const int at = position - window + 1 + key, first_row = a.batch.seq_begin[seq];
      const int first_position = a.batch.positions[first_row];
      row = at >= first_position
                ? reinterpret_cast<const char*>(a.kv + static_cast<int64_t>(first_row + at - first_position) * D)
                : a.ring.data + (static_cast<int64_t>(a.batch.seq_slot[seq]) * a.ring.rows + at % a.ring.rows) * a.ring.row_bytes;
    } else {
      const int i = key - window, entry = a.selected ? a.selected[t * a.topk + i] : i;
      const int64_t page = a.batch.seq_pages[seq * a.batch.max_pages + entry / a.entries.per_page];
      row = a.entries.data + (page * a.entries.per_page + entry % a.entries.per_page) * a.entries.row_bytes;
    }
    rows[j] = row;
  }
  for (int i = threadIdx.x; i < HM * (D / 8); i += kAttentionThreads) {
    const int h = i / (D / 8), at = i % (D / 8) * 8;
    bf16* to = q + h * kRow + at;
    if (first_head + h < H) copy_async_16(to, a.q + (t * H + first_head + h) * D + at);
    else *reinterpret_cast<uint4*>(to) = uint4{0, 0, 0, 0};
  }
  for (int h = threadIdx.x; h < HM; h += kAttentionThreads) {
    run_max[h] = -INFINITY;
    run_sum[h] = 0.0f;
  }
  __syncthreads();
  for (int half = 0; half < 2; ++half) {
    for (int i = threadIdx.x; i < kKeyTile * (D / 8); i += kAttentionThreads) {
      const int j = half * kKeyTile + i / (D / 8), at = i % (D / 8) * 8;
      bf16* to = k + j * kRow + at;
      if (rows[j]) copy_async_16(to, rows[j] + at * 2);
      else *reinterpret_cast<uint4*>(to) = uint4{0, 0, 0, 0};
    }
    copy_async_commit();
  }

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int m_tile = warp % MT, group = warp / MT;
  const int column = warp * (D / 8);
  float o[MT][NC][4] = {};
  for (int tile = 0; tile * kKeyTile < n; ++tile) {
    if (tile == 0) copy_async_wait<1>();
    else copy_async_wait<0>();
    __syncthreads();
    // Scores of 16 heads and MT * 8 keys per warp.
    float s[MT][4] = {};
    const bf16* keys = k + (tile * kKeyTile + group * MT * 8) * kRow;
#pragma unroll 4
    for (int d = 0; d < D; d += 32) {
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
    const int head = m_tile * 16 + g;  // and head + 8
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int j = 0; j < MT; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = tile * kKeyTile + (group * MT + j) * 8 + 2 * c + i % 2;
        s[j][i] = key < n ? s[j][i] * p.scale : -INFINITY;
        top[i / 2] = fmaxf(top[i / 2], s[j][i]);
      }
    }
    for (int o2 = 1; o2 < 4; o2 *= 2) {
      top[0] = fmaxf(top[0], __shfl_xor_sync(~0u, top[0], o2));
      top[1] = fmaxf(top[1], __shfl_xor_sync(~0u, top[1], o2));
    }
    if (c == 0) {
      tile_max[group * HM + head] = top[0];
      tile_max[group * HM + head + 8] = top[1];
    }
    __syncthreads();
    float new_max[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      new_max[i] = run_max[head + 8 * i];
      for (int w = 0; w < NG; ++w) new_max[i] = fmaxf(new_max[i], tile_max[w * HM + head + 8 * i]);
    }
#pragma unroll
    for (int j = 0; j < MT; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float e0 = expf(s[j][2 * i] - new_max[i]), e1 = expf(s[j][2 * i + 1] - new_max[i]);
        // Sums by 8 keys, whatever HM is: it does not change a bit.
        float sum = e0 + e1;
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (c == 0) tile_sum[(group * MT + j) * HM + head + 8 * i] = sum;
        const uint32_t both = static_cast<uint32_t>(to_bf16(e0).bits) | static_cast<uint32_t>(to_bf16(e1).bits) << 16;
        *reinterpret_cast<uint32_t*>(probs + (head + 8 * i) * kPRow + (group * MT + j) * 8 + 2 * c) = both;
      }
    }
    if (c == 0 && group == 0) {
      for (int i = 0; i < 2; ++i) rescale[head + 8 * i] = expf(run_max[head + 8 * i] - new_max[i]);
    }
    __syncthreads();
    if (group == 0 && c == 0) {
      for (int i = 0; i < 2; ++i) {
        const int h = head + 8 * i;
        float l = run_sum[h] * rescale[h];
        for (int w = 0; w < 8; ++w) l += tile_sum[w * HM + h];
        run_sum[h] = l;
        run_max[h] = new_max[i];
      }
    }
    // Output columns of this warp, all heads.
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      const float f0 = rescale[m * 16 + g], f1 = rescale[m * 16 + g + 8];
#pragma unroll
      for (int x = 0; x < NC; ++x) {
        o[m][x][0] *= f0;
        o[m][x][1] *= f0;
        o[m][x][2] *= f1;
        o[m][x][3] *= f1;
      }
    }
#pragma unroll
    for (int key = 0; key < kKeyTile; key += 16) {
      uint32_t pa[MT][4];
#pragma unroll
      for (int m = 0; m < MT; ++m) ldmatrix(pa[m], probs + (m * 16 + lane % 16) * kPRow + key + lane / 16 * 8);
#pragma unroll
      for (int x = 0; x < NC; x += 2) {
        uint32_t b[4];
        const int second = x + 1 < NC ? lane / 16 * 8 : 0;
        ldmatrix_transposed(b, k + (tile * kKeyTile + key + lane % 16) * kRow + column + x * 8 + second);
        const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          mma_bf16(o[m][x], pa[m], b0);
          if (x + 1 < NC) mma_bf16(o[m][x + 1 < NC ? x + 1 : x], pa[m], b1);
        }
      }
    }
  }
  __syncthreads();

  const bool whole = all <= kChunk;
  const int64_t at = (static_cast<int64_t>(blockIdx.z) * p.max_chunks + chunk) * H;
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int local = m * 16 + g + 8 * i, h = first_head + local;
      if (h >= H) continue;
      const float inverse = whole ? 1.0f / (run_sum[local] + expf(a.sink[h] - run_max[local])) : 1.0f;
#pragma unroll
      for (int x = 0; x < NC; ++x) {
        const int col = column + x * 8 + 2 * c;
        const float v0 = o[m][x][2 * i], v1 = o[m][x][2 * i + 1];
        if (whole) {
          const uint32_t both = static_cast<uint32_t>(to_bf16(v0 * inverse).bits) |
                                static_cast<uint32_t>(to_bf16(v1 * inverse).bits) << 16;
          *reinterpret_cast<uint32_t*>(a.o + (t * H + h) * D + col) = both;
        } else {
          *reinterpret_cast<float2*>(p.partial + (at + h) * D + col) = {v0, v1};
        }
      }
    }
  }
  if (!whole) {
    for (int h = threadIdx.x; h < HM && first_head + h < H; h += kAttentionThreads) {
      p.stats[at + first_head + h] = {run_max[h], run_sum[h]};
    }
  }
}

// One block per row and head: chunks in order.
__global__ void __launch_bounds__(128) combine_kernel(const __grid_constant__ AttentionParams p) {
  wait_for_previous();
  const AttentionArgs& a = p.a;
  const int64_t t = p.first_row + blockIdx.y;
  const int h = blockIdx.x, position = a.batch.positions[t], H = static_cast<int>(a.H), d = static_cast<int>(a.d);
  const int all = window_keys(a, position) + entry_keys(a, t, position);
  if (all <= kChunk) return;
  const int chunks = (all + kChunk - 1) / kChunk;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * p.max_chunks;
  float top = -INFINITY;
  for (int i = 0; i < chunks; ++i) top = fmaxf(top, p.stats[(first + i) * H + h].x);
  float denominator = 0.0f;
  for (int i = 0; i < chunks; ++i) {
    const float2 s = p.stats[(first + i) * H + h];
    denominator += s.y * expf(s.x - top);
  }
  denominator += expf(a.sink[h] - top);
  for (int col = threadIdx.x * 4; col < d; col += 512) {
    float4 sum = {0, 0, 0, 0};
    for (int i = 0; i < chunks; ++i) {
      const int64_t at = (first + i) * H + h;
      const float f = expf(p.stats[at].x - top);
      const float4 v = *reinterpret_cast<const float4*>(p.partial + at * d + col);
      sum.x = __fmaf_rn(v.x, f, sum.x);
      sum.y = __fmaf_rn(v.y, f, sum.y);
      sum.z = __fmaf_rn(v.z, f, sum.z);
      sum.w = __fmaf_rn(v.w, f, sum.w);
    }
    bf16* out = a.o + (t * H + h) * d + col;
    out[0] = to_bf16(sum.x / denominator);
    out[1] = to_bf16(sum.y / denominator);
    out[2] = to_bf16(sum.z / denominator);
    out[3] = to_bf16(sum.w / denominator);
  }
}

}  // namespace dsv4::cuda
