// Attention of many rows, d = 512, 64 heads at a time: a block walks the chunks of a row, then takes another row. One
// warpgroup makes the scores and exponentials of a chunk and how it joins, two the result of the chunk before it, 256
// columns each; the warps of the fourth bring keys and queries. Chunks are attention.cuh's, so are the bits.
//   keys     two chunks of 64 KiB, the next one arrives while one is used
//   queries  64 KiB, replaced when the last scores of a row are made
// Rows of 512 values lie in shared memory as eight tiles of 64 columns (tile64_descriptor): keys along the columns
// for the scores, across them for the result.
#pragma once

#include "backends/cuda/device/attention_many_keys.cuh"

namespace dsv4::cuda::many {

// s = Q K^T of 16 heads per warp and 64 keys; element 4 n + i is head g + i / 2 * 8, key 8 n + 2 c + i % 2.
__device__ inline void score(const char* queries, const char* keys, float (&s)[32]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const auto q = static_cast<uint32_t>(__cvta_generic_to_shared(queries)), k = static_cast<uint32_t>(__cvta_generic_to_shared(keys));
  const uint64_t a = tile64_descriptor(q), b = tile64_descriptor(k);
  wgmma_arrive();
#pragma unroll
  for (int d = 0; d < kDim; d += 16) {
    const uint32_t step = d / kTile * kTileBytes + d % kTile * 2;
    if (d == 0) wgmma_bf16_tiles<false>(s, a, b);
    else wgmma_bf16_tiles<true>(s, advance(a, step), advance(b, step));
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_written(s);
#else
  const int lane = threadIdx.x % 32, head = threadIdx.x / 32 % 4 * 16 + lane % 16;
  for (int i = 0; i < 32; ++i) s[i] = 0.0f;
  for (int piece = 0; piece < kDim / 8; piece += 4) {
    uint32_t q0[4], q1[4];
    ldmatrix(q0, queries + place(head, piece + lane / 16));
    ldmatrix(q1, queries + place(head, piece + 2 + lane / 16));
#pragma unroll
    for (int n = 0; n < kChunk / 8; ++n) {
      uint32_t b[4];
      ldmatrix(b, keys + place(n * 8 + lane % 8, piece + lane / 8));
      const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
      float(&d)[4] = *reinterpret_cast<float(*)[4]>(s + 4 * n);
      mma_bf16(d, q0, b0);
      mma_bf16(d, q1, b1);
    }
  }
#endif
}

// The columns of `tiles`, for begin_product.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
__device__ inline uint64_t columns_of(const char* tiles) {
  return tile64_descriptor(static_cast<uint32_t>(__cvta_generic_to_shared(tiles)));
}
#else
__device__ inline const char* columns_of(const char* tiles) { return tiles; }
#endif

// o = P V of 16 heads per warp and the 64 columns `piece`, begun; done and readable after finish_product.
template <class Columns>
__device__ inline void begin_product(const uint32_t (&probs)[4][4], Columns columns, int piece, float (&o)[32]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  wgmma_arrive();
  wgmma_bf16_registers<false, true>(o, probs[0], advance(columns, piece * kTileBytes));
#pragma unroll
  for (int k = 1; k < 4; ++k) wgmma_bf16_registers<true, true>(o, probs[k], advance(columns, piece * kTileBytes + k * 16 * 128));
  wgmma_commit();
#else
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 32; ++i) o[i] = 0.0f;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      uint32_t b[4];
      ldmatrix_transposed(b, columns + piece * kTileBytes + place(k * 16 + lane % 16, n + lane / 16));
      const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
      mma_bf16(*reinterpret_cast<float(*)[4]>(o + 4 * n), probs[k], b0);
      mma_bf16(*reinterpret_cast<float(*)[4]>(o + 4 * n + 4), probs[k], b1);
    }
  }
#endif
}
__device__ inline void finish_product(float (&o)[32]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  wgmma_wait<0>();
  wgmma_written(o);
#endif
}

// Scores of the first n keys only, and the highest so far of this lane's.
__device__ inline void highest_of(int n, float (&s)[32], float (&top)[2]) {
  const int c = threadIdx.x % 4;
  if (n < kChunk) {
#pragma unroll
    for (int i = 0; i < 32; ++i) s[i] = i / 4 * 8 + 2 * c + i % 2 < n ? s[i] : -INFINITY;
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
}

// The highest of the four lanes of a head.
__device__ inline void highest_of_four(float (&top)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 1));
    top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 2));
  }
}

// Scores of one thread in shared memory, or in local memory.
template <bool kFp8>
struct Stashed {
  float* first;
  __device__ float& operator[](int i) const { return first[i * (kFp8 ? 1 : kGroup)]; }
};

// Exponentials of the scores of a chunk as BF16, relative to `top`; comes back: their sum for each head.
template <class Scores>
__device__ inline float2 weigh(const Scores& s, float scale, const float (&top)[2], char* probs) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4, head = threadIdx.x / 32 % 4 * 16 + g;  // and head + 8
  float sum[2] = {0.0f, 0.0f};
  char* const mine = probs + head * 128 + 4 * c;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float v[16];  // all before the stores: a load behind one would wait for its address
#pragma unroll
    for (int i = 0; i < 16; ++i) v[i] = s[half * 16 + i];
#pragma unroll
    for (int tile = 0; tile < kChunk / 16; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float e0 = weight(v[4 * tile + 2 * i], scale, top[i]), e1 = weight(v[4 * tile + 2 * i + 1], scale, top[i]);
        sum[i] += e0 + e1;
        *reinterpret_cast<uint32_t*>(mine + i * 8 * 128 + ((half * 4 + tile) ^ g) * 16) = pack2(e0, e1);
      }
    }
  }
  return {sum_of_four(sum[0]), sum_of_four(sum[1])};
}

// The keys of the rows that a block takes, one after the other; what it needs is loaded a row ahead.
class RowKeys {
 public:
  __device__ RowKeys(const AttentionArgs& a, int items) : a_(a), items_(items) { load(static_cast<int>(blockIdx.x)); }
  __device__ int position() const { return position_; }  // of the row that next() is asked for
  // Of `item`, and loads those of the next one.
  __device__ int next(int item) {
    const bool all_visible = a_.entries.data && !a_.selected;
    const int keys = window_keys(a_, position_) + (all_visible ? static_cast<int>((position_ + 1) / a_.ratio) : selected_);
    load(item + static_cast<int>(gridDim.x));
    return keys;
  }

 private:
  __device__ void load(int item) {
    if (item >= items_) return;
    const int64_t t = item / (static_cast<int>(a_.H) / kHeads);
    position_ = a_.batch.positions[t];
    if (a_.selected && a_.entries.data) selected_ = a_.selected_count[t];
  }

  const AttentionArgs& a_;
  int items_, position_ = 0, selected_ = 0;
};

template <bool kFp8>
__device__ inline void make_probs(const AttentionParams& p, Shared<kFp8>& shared, int items) {
  wait_for_previous();
  RowKeys rows(p.a, items);
  int chunk = 0;  // of all that this block takes
  const int mine = threadIdx.x - kFirstWeigher, lane = mine % 32;
  const bool turns = p.rope.freqs && mine < p.rope.r / 2;
  const int head = mine / 32 * 16 + lane / 4, groups = static_cast<int>(p.a.H) / kHeads;  // and head + 8
  float local[kFp8 ? 32 : 1];
  Stashed<kFp8> stash{local};
  if constexpr (kFp8) asm volatile("" : "+l"(stash.first)::"memory");  // not in registers
  else stash.first = &shared.aside.scores[0][mine];
  for (int item = blockIdx.x, round = 0; item < items; item += gridDim.x, ++round) {
    const float2 turn = turns ? make_turn(p.rope, rows.position(), mine) : float2{0.0f, 1.0f};
    const float* const sink = p.a.sink + item % groups * kHeads + head;
    const float sinks[2] = {sink[0], sink[8]};
    const int all = rows.next(item), chunks = (all + kChunk - 1) / kChunk;
    Chunks joined[2];
    // What those who add up need of chunk k, when they have read that of the chunk before.
    const auto hand_over = [&](const auto& s, const float (&top)[2], int k) {
      const bool last = k + 1 == chunks;
      float2 f[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) f[i] = joined[i].raise(top[i]);
      if (chunk + k > 0) barrier_sync<kWeigherAndAdders>(kProbsRead);
      if (turns && k == 0) shared.turns[round % 2][mine] = turn;
      const float2 sum = weigh(s, p.scale, top, shared.probs);
      joined[0].add(f[0], sum.x);
      joined[1].add(f[1], sum.y);
      if (lane % 4 == 0) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          shared.factors[head + 8 * i] = f[i];
          if (last) shared.inverse[round % 2][head + 8 * i] = joined[i].inverse(sinks[i]);
        }
      }
      if (mine == 0) shared.last = last;
      cuda::barrier_arrive(&shared.probs_full);
    };
    if constexpr (!kFp8) barrier_sync<kProducersAndWeigher<false>>(kQueriesFull);
    float top[2] = {-INFINITY, -INFINITY};
    for (int k = 0; k < chunks; ++k) {
      if (k >= kTogether) barrier_wait(&shared.piece_added, chunk + k - 1);
      const int stage = (chunk + k) % 2;
      barrier_sync<kProducersAndWeigher<kFp8>>(kKeysFull + stage);
      float s[32];
      score(shared.queries, shared.keys[stage], s);
      if (k + 1 == chunks) barrier_arrive<kProducersAndWeigher<kFp8>>(kQueriesEmpty + (kFp8 ? 0 : queries_pair(chunk + chunks)));
      highest_of(all - k * kChunk, s, top);
      if (k == 0 && chunks > 1) {  // both maxima first
#pragma unroll
        for (int i = 0; i < 32; ++i) stash[i] = s[i];
        continue;
      }
      highest_of_four(top);
      top[0] *= p.scale;
      top[1] *= p.scale;
      if (k == 1) hand_over(stash, top, 0);
      hand_over(s, top, k);
      top[0] = top[1] = -INFINITY;
    }
    chunk += chunks;
  }
  if (chunk > 0) barrier_sync<kWeigherAndAdders>(kProbsRead);
}

// A piece of a row's result, 16 heads and 64 columns per warp, rotated back; through shared memory, so that four
// neighbouring threads write 64 bytes.
__device__ inline void store(const AttentionParams& p, const float (&total)[32], int piece, const float2& inverse,
                             const float2* turns, char* out, bf16* to) {
  int lane = threadIdx.x % 32;
  asm volatile("" : "+r"(lane));  // addresses are made here: kept from row to row they would be spilled
  const int g = lane / 4, c = lane % 4;
  const int from = p.rope.freqs ? kDim - static_cast<int>(p.rope.r) : kDim;
  const auto at = [](int row, int i) { return row * 64 + (i ^ row / 2) % 4 * 16; };  // 16 bytes of 16 rows of 64
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int column = threadIdx.x / kGroup * kColumns + piece * kTile + half * kTile / 2;
    const float* const sums = total + half * 16;
    const auto put = [&](int i, float v0, float v1) {
      *reinterpret_cast<uint32_t*>(out + at(g + i / 2 % 2 * 8, i / 4) + 4 * c) = pack2(v0, v1);
    };
    __syncwarp();
    if (kColumns + (piece + 1) * kTile <= kDim - 2 * kMaxPairs || column + kTile / 2 <= from) {
#pragma unroll
      for (int i = 0; i < 16; i += 2) {
        const float factor = i / 2 % 2 ? inverse.y : inverse.x;
        put(i, sums[i] * factor, sums[i + 1] * factor);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 16; i += 2) {
        const float factor = i / 2 % 2 ? inverse.y : inverse.x;
        float v0 = sums[i] * factor, v1 = sums[i + 1] * factor;
        round2(v0, v1);
        const int pair = (column + i / 4 * 8 + 2 * c - from) / 2;
        if (pair >= 0) {
          const float2 turn = turns[pair];
          rotate_pair(v0, v1, -turn.x, turn.y);
        }
        put(i, v0, v1);
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = i * 8 + lane / 4;
      *reinterpret_cast<uint4*>(to + row * kDim + column + c * 8) = *reinterpret_cast<const uint4*>(out + at(row, c));
    }
  }
}

template <bool kFp8>
__device__ inline void add_up(const AttentionParams& p, Shared<kFp8>& shared, int items) {
  const int warp = threadIdx.x / 32, group = warp / 4, lane = threadIdx.x % 32;
  const int head = warp % 4 * 16 + lane / 4;  // and head + 8
  wait_for_previous();
  int chunk = 0;  // of all that this block takes
  for (int item = blockIdx.x, round = 0; item < items; item += gridDim.x, ++round) {
    float total[kPieces][32] = {};
    for (bool last = false; !last; ++chunk) {
      const int stage = chunk % 2;
      const auto columns = columns_of(shared.keys[0] + uniform(stage * kRowsBytes + group * kPieces * kTileBytes));
      barrier_wait(&shared.probs_full, chunk);
      uint32_t probs[4][4];
#pragma unroll
      for (int k = 0; k < 4; ++k) ldmatrix(probs[k], shared.probs + place(warp % 4 * 16 + lane % 16, k * 2 + lane / 16));
      float o[32];
      begin_product(probs, columns, 0, o);
      const float2 factors[2] = {shared.factors[head], shared.factors[head + 8]};
      last = shared.last;
      barrier_arrive<kWeigherAndAdders>(kProbsRead);
      if (__any_sync(~0u, factors[0].x != 1.0f || factors[1].x != 1.0f)) {  // seldom after the first chunk
#pragma unroll
        for (int i = 0; i < kPieces * 32; ++i) total[i / 32][i % 32] *= factors[i / 2 % 2].x;
      }
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        finish_product(o);
        if (kFp8 ? piece == kPieces - 1 : piece % 2 == 1) barrier_arrive<kProducersAndAdders<kFp8>>(kKeysEmpty + stage * 2 + piece / 2);
        if (piece == 0 && threadIdx.x % kGroup == 0) cuda::barrier_arrive(&shared.piece_added);
#pragma unroll
        for (int i = 0; i < 32; ++i) total[piece][i] = __fmaf_rn(o[i], factors[i / 2 % 2].y, total[piece][i]);
        if (piece + 1 < kPieces) begin_product(probs, columns, piece + 1, o);
      }
    }
    const float2 inverse = {shared.inverse[round % 2][head], shared.inverse[round % 2][head + 8]};
    const int64_t row = static_cast<int64_t>(item) * kHeads + warp % 4 * 16;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      store(p, total[piece], piece, inverse, shared.turns[round % 2], shared.out[warp], p.a.o + row * kDim);
    }
  }
}

// Rows of the batch by heads / 64: `items`, strided over the blocks. kFp8: rows of the cache are in FP8.
template <bool kFp8>
__global__ void __launch_bounds__(kThreads, 1) attention_many_kernel(const __grid_constant__ AttentionParams p, int items) {
  extern __shared__ __align__(1024) char attention_shared[];
  Shared<kFp8>& shared = *reinterpret_cast<Shared<kFp8>*>(attention_shared);
  if (threadIdx.x == 0) {
    barrier_init(&shared.probs_full, kGroup);
    barrier_init(&shared.piece_added, 2);
  }
  __syncthreads();
  // Registers of a thread: 128, or these of one of each warpgroup.
  constexpr int kAdderRegisters = 184, kWeigherRegisters = 88, kProducerRegisters = 56;
  static_assert(2 * kAdderRegisters + kWeigherRegisters + kProducerRegisters == 4 * 128);
  if (threadIdx.x >= kFirstProducer) {
    fewer_registers<kProducerRegisters>();
    if constexpr (kFp8) produce_packed(p, shared, items);
    else produce(p, shared, items);
  } else if (threadIdx.x >= kFirstWeigher) {
    fewer_registers<kWeigherRegisters>();
    make_probs(p, shared, items);
  } else {
    more_registers<kAdderRegisters>();
    add_up(p, shared, items);
  }
}

}  // namespace dsv4::cuda::many
