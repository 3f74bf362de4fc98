// Index scores: 64 entries and 64 heads at a time by one warpgroup. Keys come in bulk copies into places in shared
// memory and go on as the first operand in registers, of which each lane takes 16 neighbouring bytes; the queries lie
// in shared memory in the order of K that this gives. A score is the sum over heads of relu(q . k) w: a lane adds its
// pair of every eight heads in order, then the four lanes of an entry. It depends on the row and the entry alone.
#pragma once

#include "backends/cuda/device/barrier.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/device/wgmma.cuh"
#include "ops/args/attention.h"

namespace dsv4::cuda {

inline constexpr int kIndexTile = 64;  // entries, and heads, of one product

__host__ __device__ inline int index_head_groups(int64_t heads) {
  return (static_cast<int>(heads) + kIndexTile - 1) / kIndexTile;
}
// Of the queries of a row: for every 64 heads E / 64 tiles, aligned to 1024 bytes.
template <int E>
__host__ __device__ constexpr int index_query_bytes(int groups) {
  return groups * kIndexTile * E * 2;
}

template <int E>
__device__ float index_scale(int64_t heads) {
  return (1.0f / sqrtf(static_cast<float>(E))) * (1.0f / sqrtf(static_cast<float>(heads)));
}

// Queries of row t and their weights w [groups * 64], times `scale`; absent heads are zeros. Followed by __syncthreads().
template <int E>
__device__ void load_queries(const IndexSelectArgs& a, int64_t t, float scale, char* q, float* w) {
  constexpr int kParts = E / 32;
  const int heads = static_cast<int>(a.heads), padded = index_head_groups(heads) * kIndexTile;
  for (int i = threadIdx.x; i < padded * kParts; i += blockDim.x) {
    const int h = i / kParts, part = i % kParts;
    uint4 v[4] = {};
    if (h < heads) {
      const uint4* from = reinterpret_cast<const uint4*>(a.q + (t * heads + h) * E + part * 32);
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = from[j];
    }
    // Lane c of four has words 4 c to 4 c + 3 of a key's 64 bytes. They are its pairs of K in two products of 16, low
    // pairs and high ones; so of the queries, too, one word of each lane comes after the other.
    char* const row = q + (h / kIndexTile * (E / 64) + part / 2) * (kIndexTile * 128) + h % kIndexTile * 128;
    const auto place = [&](int j, uint4 words) { *reinterpret_cast<uint4*>(row + ((part % 2 * 4 + j) ^ h % 8) * 16) = words; };
    place(0, {v[0].x, v[1].x, v[2].x, v[3].x});
    place(1, {v[0].y, v[1].y, v[2].y, v[3].y});
    place(2, {v[0].z, v[1].z, v[2].z, v[3].z});
    place(3, {v[0].w, v[1].w, v[2].w, v[3].w});
  }
  for (int h = threadIdx.x; h < padded; h += blockDim.x) {
    w[h] = h < heads ? round_bf16(to_float(a.weights[t * heads + h]) * scale) : 0.0f;
  }
  fence_for_wgmma();
}

// The keys of one warpgroup on their way: S places of 64, filled and emptied in turn. One thread, the leader, fills.
// Barriers say when a place is full and when all have emptied it.
template <int E, int S>
class KeyPlaces {
 public:
  static constexpr int kTileBytes = kIndexTile * E * 2;
  static constexpr int kBytes = S * kTileBytes;

  static constexpr int kBarriers = 2 * S;

  // The warpgroup's own part of the keys' and barriers' memory [warpgroups].
  __device__ KeyPlaces(char* keys, uint64_t* barriers)
      : keys_(keys + threadIdx.x / 128 * kBytes), full_(barriers + threadIdx.x / 128 * kBarriers), empty_(full_ + S) {}
  __device__ static bool leader() { return threadIdx.x % 128 == 0; }

  // The leader, then __syncthreads() before others wait.
  __device__ void begin() {
    for (int i = 0; i < S; ++i) {
      barrier_init(full_ + i, 1);
      barrier_init(empty_ + i, 128);
    }
    barriers_known_to_copies();
  }
  // The leader: whether there is a place that this thread has emptied, as all will.
  __device__ bool has_place() const { return filled_ < emptied_ + S; }
  // The leader: entries from `first` on, below `end`, at most 64.
  __device__ void fill(const IndexSelectArgs& a, int seq, int first, int end) {
    const int n = min(kIndexTile, end - first), per_page = static_cast<int>(a.keys.per_page);
    char* const to = keys_ + filled_ % S * kTileBytes;
    uint64_t* const full = full_ + filled_ % S;
    if (filled_ >= S) barrier_wait(empty_ + filled_ % S, filled_ / S - 1);
    ++filled_;
    barrier_expect(full, n * E * 2);
    for (int i = 0; i < n;) {  // neighbours in a page
      const int at = (first + i) % per_page, some = min(n - i, per_page - at);
      const int64_t page = a.batch.seq_pages[seq * a.batch.max_pages + (first + i) / per_page];
      copy_bulk(to + i * E * 2, a.keys.data + (page * per_page + at) * (E * 2), some * E * 2, full);
      i += some;
    }
  }
  // All: the keys of the place that was filled first, which is empty then. a[s]: what step s of K multiplies.
  __device__ void take(uint32_t (&a)[E / 16][4]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, odd = lane / 4 % 2;
    barrier_wait(full_ + emptied_ % S, emptied_ / S);
    const char* const row = keys_ + emptied_ % S * kTileBytes + (warp * 16 + lane / 4) * (E * 2) + lane % 4 * 16;
    // Neighbouring rows begin in the same bank: odd ones are read in another order.
    uint4 v[2][E / 32];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < E / 32; ++j) v[i][j] = *reinterpret_cast<const uint4*>(row + i * 8 * (E * 2) + (j ^ odd) * 64);
    }
#pragma unroll
    for (int j = 0; j < E / 32; ++j) {
      const uint4 low = odd ? v[0][j ^ 1] : v[0][j], high = odd ? v[1][j ^ 1] : v[1][j];
      const uint32_t words[8] = {low.x, high.x, low.y, high.y, low.z, high.z, low.w, high.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) a[2 * j + i / 4][i % 4] = words[i];
    }
    barrier_arrive(empty_ + emptied_ % S);
    ++emptied_;
  }

 private:
  char* keys_;
  uint64_t *full_, *empty_;
  int filled_ = 0, emptied_ = 0;
};

// d[4 n + i]: entry g + i / 2 * 8 of this warp's 16, head 8 n + 2 c + i % 2.
template <int E>
__device__ void index_products(const uint32_t (&keys)[E / 16][4], const char* q, float (&d)[32]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const uint64_t b = tile64_descriptor(static_cast<uint32_t>(__cvta_generic_to_shared(q)));
  wgmma_arrive();
  wgmma_bf16_registers<false, false>(d, keys[0], b);
#pragma unroll
  for (int s = 1; s < E / 16; ++s) wgmma_bf16_registers<true, false>(d, keys[s], b + ((s / 4 * kIndexTile * 128 + s % 4 * 32) >> 4));
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_written(d);
#else
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    float sum[4] = {};
    const char* const row = q + (n * 8 + g) * 128 + c * 4;
#pragma unroll
    for (int s = 0; s < E / 16; ++s) {
      const char* const tile = row + s / 4 * kIndexTile * 128;
      const uint32_t b[2] = {*reinterpret_cast<const uint32_t*>(tile + ((s % 4 * 2) ^ g) * 16),
                             *reinterpret_cast<const uint32_t*>(tile + ((s % 4 * 2 + 1) ^ g) * 16)};
      mma_bf16(sum, keys[s], b);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) d[4 * n + i] = sum[i];
  }
#endif
}

// A NaN stays one.
__device__ inline float relu(float v) {
  float r;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(r) : "f"(v));
  return r;
}

// Scores of entries g and g + 8 of this warp's 16, in all four lanes of an entry.
template <int E>
__device__ float2 index_scores(const uint32_t (&keys)[E / 16][4], const char* q, const float* w, int groups) {
  float2 sum = {0.0f, 0.0f};
  for (int group = 0; group < groups; ++group) {
    float d[32];
    index_products<E>(keys, q + group * index_query_bytes<E>(1), d);
    const float* const mine = w + group * kIndexTile + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 weight = *reinterpret_cast<const float2*>(mine + n * 8);
      sum.x = __fmaf_rn(relu(d[4 * n]), weight.x, sum.x);
      sum.x = __fmaf_rn(relu(d[4 * n + 1]), weight.y, sum.x);
      sum.y = __fmaf_rn(relu(d[4 * n + 2]), weight.x, sum.y);
      sum.y = __fmaf_rn(relu(d[4 * n + 3]), weight.y, sum.y);
    }
  }
  for (int o = 1; o < 4; o *= 2) {
    sum.x += __shfl_xor_sync(~0u, sum.x, o);
    sum.y += __shfl_xor_sync(~0u, sum.y, o);
  }
  return sum;
}

// By the two lanes of the four that store: which entry of the 64 is this one's, and its score.
__device__ inline bool stores_score() { return threadIdx.x % 4 < 2; }
__device__ inline int score_entry() { return static_cast<int>(threadIdx.x / 32 % 4 * 16 + threadIdx.x % 4 * 8 + threadIdx.x % 32 / 4); }
__device__ inline float score_of(const float2& both) { return threadIdx.x % 4 == 0 ? both.x : both.y; }

}  // namespace dsv4::cuda
