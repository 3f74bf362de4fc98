// Attention of many rows, d = 512, 64 heads at a time: a block walks the chunks of a row, then takes another row. One
// warpgroup makes the scores and exponentials of a chunk, two the result of the chunk before it, 256 columns each; the
// warps of the fourth bring keys and queries. Chunks and how they join are attention.cuh's, so are the bits.
//   keys     two chunks of 64 KiB, the next one arrives while one is used; a pair of warps for each
//   queries  64 KiB, replaced when the last scores of a row are made
// Rows of 512 values lie in shared memory as eight tiles of 64 columns (tile64_descriptor): keys along the columns
// for the scores, across them for the result.
#pragma once

#include "backends/cuda/device/attention.cuh"
#include "backends/cuda/device/barrier.cuh"
#include "backends/cuda/device/wgmma.cuh"

namespace dsv4::cuda::many {

inline constexpr int kHeads = 64, kDim = 512, kTile = 64;
inline constexpr int kTileBytes = kTile * 128, kRowsBytes = kDim / kTile * kTileBytes;  // of 64 rows
inline constexpr int kGroup = 128, kAdders = 2 * kGroup, kPair = kGroup / 2;  // threads
inline constexpr int kFirstWeigher = kAdders, kFirstProducer = kAdders + kGroup, kThreads = kAdders + 2 * kGroup;
inline constexpr int kColumns = 256, kPieces = kColumns / kTile;  // of a warpgroup's result
static_assert(kChunk == kTile && kHeads == kTile);

struct Shared {
  char queries[kRowsBytes];
  char keys[2][kRowsBytes];
  char probs[kTileBytes];      // [head][key], a tile
  char out[8][16 * 128];       // of each warp: 16 heads, 64 columns
  float2 stats[kHeads];        // maximum and sum
  float2 turns[2][kMaxPairs];  // of this row and the next
  // Ends once for each chunk: probs, stats and, with the first chunk of a row, turns are made. Every thread of the weigher
  // arrives, for what it wrote itself: racecheck follows that, and not bar.arrive after writes.
  uint64_t probs_full;
};
inline constexpr int kSharedBytes = sizeof(Shared);

// Named barriers. Full: those who made it arrive, those who read it wait. Empty: the other way round.
enum Barrier : int {
  kKeysFull = 1,       // of each stage
  kKeysEmpty = 3,      // of each stage and half of the tiles: a warpgroup's first two, its last two
  kHalfAdded = 7,  // and probs, stats, turns of the row before are read
  kQueriesFull = 8,
  kQueriesEmpty = 9,  // for each pair, whose turn it is
};
inline constexpr int kProducersAndWeigher = kPair + kGroup, kProducersAndAdders = kPair + kAdders;
inline constexpr int kWeigherAndAdders = kGroup + kAdders;
template <int Threads>
__device__ inline void barrier_sync(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(Threads) : "memory");
}
template <int Threads>
__device__ inline void barrier_arrive(int id) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(Threads) : "memory");
}

// Place of 16-byte piece `piece` (0 .. 63) of row `row` (0 .. 63).
__device__ inline int place(int row, int piece) {
  return piece / 8 * kTileBytes + row * 128 + ((piece ^ row) % 8) * 16;
}

// Half of the tiles of 32 rows from `first` on; lane l says where row l lies, nullptr: zeros. Eight lanes copy 128 bytes
// of a row at a time: addresses are made once for four copies.
__device__ inline void copy_rows(char* to, int first, const char* row, int half) {
  const int lane = threadIdx.x % 32;
  char* const at[2] = {to + place(first + lane / 8, lane % 8), to + place(first + lane / 8 + 4, lane % 8)};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const auto bits = reinterpret_cast<unsigned long long>(row);
    const char* from = reinterpret_cast<const char*>(__shfl_sync(~0u, bits, i * 4 + lane / 8));
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int tile = k / 2 * kPieces + half * 2 + k % 2;
      copy_async_16_or_zero(at[i % 2] + i / 2 * 8 * 128 + tile * kTileBytes, from + tile * 128 + lane % 8 * 16, from);
    }
  }
}

// Which pair brings the queries of a row that begins with `chunk` of all that the block takes: not the one that brings
// this chunk. The place of queries is free before that of the next chunk, and they are needed first.
__device__ inline int queries_pair(int chunk) { return (chunk + 1) % 2; }

__device__ inline void await_copies() {
  copy_async_commit();
  copy_async_wait<0>();
  fence_for_wgmma();
}

__device__ inline void produce(const AttentionParams& p, Shared& shared, int items) {
  const AttentionArgs& a = p.a;
  const int warp = (threadIdx.x - kFirstProducer) / 32, lane = threadIdx.x % 32;
  const int pair = warp / 2, first = warp % 2 * 32, mine = first + lane;  // this lane's key of a chunk, head of a group
  const int H = static_cast<int>(a.H), groups = H / kHeads;
  int chunk = 0;  // of all that this block takes
  bool waited = false, used = false;
  const auto queries = [&](int item) {
    return reinterpret_cast<const char*>(a.q + (static_cast<int64_t>(item / groups) * H + item % groups * kHeads) * kDim);
  };
  for (int item = blockIdx.x, round = 0; item < items; item += gridDim.x, ++round) {
    const int64_t t = item / groups;
    const int position = a.batch.positions[t], seq = a.batch.row_seq[t];
    const int first_row = a.batch.seq_begin[seq], first_position = a.batch.positions[first_row];
    const int window = window_keys(a, position);
    const char* const ring = a.ring.data + static_cast<int64_t>(a.batch.seq_slot[seq]) * a.ring.rows * a.ring.row_bytes;
    const int ring_rows = static_cast<int>(a.ring.rows), per_page = static_cast<int>(a.entries.per_page);
    const auto ring_row = [&](int key) { return ring + (position - window + 1 + key) % ring_rows * a.ring.row_bytes; };
    const auto in_ring = [&](int key) { return key < window && position - window + 1 + key < first_position; };
    const auto key_row = [&](int key, int all) -> const char* {
      if (key >= all) return nullptr;
      if (in_ring(key)) return ring_row(key);
      if (key < window) {
        return reinterpret_cast<const char*>(a.kv + static_cast<int64_t>(first_row + position - window + 1 + key - first_position) * kDim);
      }
      const int entry = a.selected ? a.selected[t * a.topk + key - window] : key - window;
      const int64_t page = a.batch.seq_pages[seq * a.batch.max_pages + entry / per_page];
      return a.entries.data + (page * per_page + entry % per_page) * a.entries.row_bytes;
    };
    int x = (chunk + pair) % 2;  // the first chunk of the row that is this pair's
    bool brought = false;
    if (!waited) {
      // Rows of the window that are older than the batch are there already.
      const int key = x * kChunk + mine;
      brought = __all_sync(~0u, in_ring(key));
      for (int half = 0; half < 2 && brought; ++half) copy_rows(shared.keys[pair], first, ring_row(key), half);
      wait_for_previous();
      waited = true;
    }
    const int all = window + entry_keys(a, t, position), chunks = (all + kChunk - 1) / kChunk;
    const char* row = x < chunks ? key_row(x * kChunk + mine, all) : nullptr;
    if (pair == queries_pair(chunk)) {
      if (round > 0) barrier_sync<kProducersAndWeigher>(kQueriesEmpty + pair);
      for (int half = 0; half < 2; ++half) copy_rows(shared.queries, first, queries(item) + mine * kDim * 2, half);
      const int next = item + static_cast<int>(gridDim.x);
      if (mine == 0 && next < items) prefetch_l2(queries(next), kRowsBytes);
      await_copies();
      barrier_arrive<kProducersAndWeigher>(kQueriesFull);
    }
    for (; x < chunks; x += 2) {
      for (int half = 0; half < 2; ++half) {
        if (used) barrier_sync<kProducersAndAdders>(kKeysEmpty + pair * 2 + half);
        if (!brought) copy_rows(shared.keys[pair], first, row, half);
      }
      used = true;
      brought = false;
      await_copies();
      barrier_arrive<kProducersAndWeigher>(kKeysFull + pair);
      if (x + 2 < chunks) row = key_row((x + 2) * kChunk + mine, all);
    }
    chunk += chunks;
  }
  // What was given back last.
  if (!waited) wait_for_previous();
  for (int half = 0; half < 2 && used; ++half) barrier_sync<kProducersAndAdders>(kKeysEmpty + pair * 2 + half);
  if (chunk > 0 && pair == queries_pair(chunk)) barrier_sync<kProducersAndWeigher>(kQueriesEmpty + pair);
}

// s = Q K^T of 16 heads per warp and 64 keys; element 4 n + i is head g + i / 2 * 8, key 8 n + 2 c + i % 2.
__device__ inline void score(const char* queries, const char* keys, float (&s)[32]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const auto q = static_cast<uint32_t>(__cvta_generic_to_shared(queries)), k = static_cast<uint32_t>(__cvta_generic_to_shared(keys));
  const uint64_t a = tile64_descriptor(q), b = tile64_descriptor(k);
  wgmma_arrive();
#pragma unroll
  for (int d = 0; d < kDim; d += 16) {
    const uint64_t step = static_cast<uint64_t>(d / kTile * kTileBytes + d % kTile * 2) >> 4;
    if (d == 0) wgmma_bf16_tiles<false>(s, a, b);
    else wgmma_bf16_tiles<true>(s, a + step, b + step);
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

// o = P V of 16 heads per warp and the 64 columns of a tile, begun; done and readable after finish_product.
__device__ inline void begin_product(const uint32_t (&probs)[4][4], const char* tile, float (&o)[32]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const uint64_t b = tile64_descriptor(static_cast<uint32_t>(__cvta_generic_to_shared(tile)));
  wgmma_arrive();
  wgmma_bf16_across<false>(o, probs[0], b);
#pragma unroll
  for (int k = 1; k < 4; ++k) wgmma_bf16_across<true>(o, probs[k], b + (k * 16 * 128 >> 4));
  wgmma_commit();
#else
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 32; ++i) o[i] = 0.0f;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      uint32_t b[4];
      ldmatrix_transposed(b, tile + place(k * 16 + lane % 16, n + lane / 16));
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

// Scores of n keys, scaled, and the highest so far of this lane's.
__device__ inline void scale_scores(float scale, int n, float (&s)[32], float (&top)[2]) {
  const int c = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 32; ++i) s[i] *= scale;
  if (n < kChunk) {
#pragma unroll
    for (int i = 0; i < 32; ++i) s[i] = i / 4 * 8 + 2 * c + i % 2 < n ? s[i] : -INFINITY;
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
}

// Exponentials of the scores of a chunk as BF16, relative to `top`; their sum for each head.
__device__ inline void weigh(const float (&s)[32], const float (&top)[2], char* probs, float2* stats) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4, head = threadIdx.x / 32 % 4 * 16 + g;  // and head + 8
  float sum[2] = {0.0f, 0.0f};
  char* const mine = probs + head * 128 + 4 * c;
#pragma unroll
  for (int tile = 0; tile < kChunk / 8; ++tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float e0 = expf(s[4 * tile + 2 * i] - top[i]), e1 = expf(s[4 * tile + 2 * i + 1] - top[i]);
      sum[i] += e0 + e1;
      *reinterpret_cast<uint32_t*>(mine + i * 8 * 128 + (tile ^ g) * 16) = pack2(e0, e1);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] = sum_of_four(sum[i]);
    if (c == 0) stats[head + 8 * i] = {top[i], sum[i]};
  }
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

__device__ inline void make_probs(const AttentionParams& p, Shared& shared, int items) {
  wait_for_previous();
  RowKeys rows(p.a, items);
  int chunk = 0;  // of all that this block takes
  const int pair = threadIdx.x - kFirstWeigher;  // that this thread makes the turn of
  const bool turns = p.rope.freqs && pair < p.rope.r / 2;
  for (int item = blockIdx.x, round = 0; item < items; item += gridDim.x, ++round) {
    const float2 turn = turns ? make_turn(p.rope, rows.position(), pair) : float2{0.0f, 1.0f};
    const int all = rows.next(item);
    barrier_sync<kProducersAndWeigher>(kQueriesFull);
    for (int begin = 0; begin < all; begin += 2 * kChunk) {
      const int halves = all - begin > kChunk ? 2 : 1;
      float s[2][32], top[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (h >= halves) continue;
        const int stage = (chunk + h) % 2;
        barrier_sync<kProducersAndWeigher>(kKeysFull + stage);
        score(shared.queries, shared.keys[stage], s[h]);
        scale_scores(p.scale, all - begin - h * kChunk, s[h], top);
      }
      if (begin + 2 * kChunk >= all) barrier_arrive<kProducersAndWeigher>(kQueriesEmpty + queries_pair(chunk + halves));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 1));
        top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 2));
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (h >= halves) continue;
        if (chunk + h > 0) barrier_sync<kWeigherAndAdders>(kHalfAdded);
        if (turns && begin == 0 && h == 0) shared.turns[round % 2][pair] = turn;
        weigh(s[h], top, shared.probs, shared.stats);
        cuda::barrier_arrive(&shared.probs_full);
      }
      chunk += halves;
    }
  }
  if (chunk > 0) barrier_sync<kWeigherAndAdders>(kHalfAdded);
}

// The result of a row, 16 heads and 256 columns per warp, rotated back; through shared memory, so that neighbouring
// threads write 16 bytes each.
__device__ inline void store(const AttentionParams& p, const float (&total)[kPieces][32], const float (&inverse)[2],
                             const float2* turns, char* out, bf16* to) {
  int lane = threadIdx.x % 32;
  asm volatile("" : "+r"(lane));  // addresses are made here: kept from row to row they would be spilled
  const int g = lane / 4, c = lane % 4, first = threadIdx.x / kGroup * kColumns;
  const int from = p.rope.freqs ? kDim - static_cast<int>(p.rope.r) : kDim;
  char* const mine = out + g * 128 + 4 * c;
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
    const int column = first + piece * kTile;
    __syncwarp();
    const auto put = [&](int i, float v0, float v1) {
      *reinterpret_cast<uint32_t*>(mine + i / 2 % 2 * 8 * 128 + (i / 4 ^ g) * 16) = pack2(v0, v1);
    };
    if (column + kTile <= from) {
#pragma unroll
      for (int i = 0; i < 32; i += 2) put(i, total[piece][i] * inverse[i / 2 % 2], total[piece][i + 1] * inverse[i / 2 % 2]);
    } else {
#pragma unroll
      for (int i = 0; i < 32; i += 2) {
        float v0 = total[piece][i] * inverse[i / 2 % 2], v1 = total[piece][i + 1] * inverse[i / 2 % 2];
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
    for (int i = 0; i < 4; ++i) {
      const int row = i * 4 + lane / 8;
      *reinterpret_cast<uint4*>(to + row * kDim + column + lane % 8 * 8) = *reinterpret_cast<const uint4*>(out + place(row, lane % 8));
    }
  }
}

__device__ inline void add_up(const AttentionParams& p, Shared& shared, int items) {
  const AttentionArgs& a = p.a;
  const int warp = threadIdx.x / 32, group = warp / 4, lane = threadIdx.x % 32;
  const int head = warp % 4 * 16 + lane / 4;  // and head + 8
  const int H = static_cast<int>(a.H), groups = H / kHeads;
  wait_for_previous();
  RowKeys rows(a, items);
  int chunk = 0;  // of all that this block takes
  for (int item = blockIdx.x, round = 0; item < items; item += gridDim.x, ++round) {
    const int all = rows.next(item), first_head = item % groups * kHeads;
    const float sinks[2] = {a.sink[first_head + head], a.sink[first_head + head + 8]};
    Chunks joined[2];
    float total[kPieces][32] = {};
    for (int begin = 0; begin < all; begin += kChunk, ++chunk) {
      const int stage = chunk % 2;
      barrier_wait(&shared.probs_full, chunk);
      uint32_t probs[4][4];
#pragma unroll
      for (int k = 0; k < 4; ++k) ldmatrix(probs[k], shared.probs + place(warp % 4 * 16 + lane % 16, k * 2 + lane / 16));
      float o[32];
      const char* tiles = shared.keys[stage] + group * kPieces * kTileBytes;
      begin_product(probs, tiles, o);
      float2 factors[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 s = shared.stats[head + 8 * i];
        factors[i] = joined[i].join(s.x, s.y);
      }
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        finish_product(o);
        if (piece % 2 == 1) barrier_arrive<kProducersAndAdders>(kKeysEmpty + stage * 2 + piece / 2);
        if (piece == 1) barrier_arrive<kWeigherAndAdders>(kHalfAdded);
#pragma unroll
        for (int i = 0; i < 32; ++i) add_chunk(factors[i / 2 % 2], o[i], total[piece][i]);
        if (piece + 1 < kPieces) begin_product(probs, tiles + (piece + 1) * kTileBytes, o);
      }
    }
    const float inverse[2] = {joined[0].inverse(sinks[0]), joined[1].inverse(sinks[1])};
    const int64_t row = static_cast<int64_t>(item / groups) * H + first_head + warp % 4 * 16;
    store(p, total, inverse, shared.turns[round % 2], shared.out[warp], a.o + row * kDim);
  }
}

// Rows of the batch by heads / 64: `items`, strided over the blocks.
__global__ void __launch_bounds__(kThreads, 1) attention_many_kernel(const __grid_constant__ AttentionParams p, int items) {
  extern __shared__ __align__(1024) char attention_shared[];
  Shared& shared = *reinterpret_cast<Shared*>(attention_shared);
  if (threadIdx.x == 0) barrier_init(&shared.probs_full, kGroup);
  __syncthreads();
  // Registers of a thread: 128, or 2 * 192 + 96 + 32 for one of each warpgroup.
  if (threadIdx.x >= kFirstProducer) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
#endif
    produce(p, shared, items);
  } else if (threadIdx.x >= kFirstWeigher) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.dec.sync.aligned.u32 96;");
#endif
    make_probs(p, shared, items);
  } else {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.inc.sync.aligned.u32 192;");
#endif
    add_up(p, shared, items);
  }
}

}  // namespace dsv4::cuda::many
