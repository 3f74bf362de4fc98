// Attention of many rows, d = 512, 64 heads at a time: a block walks the chunks of a row, then takes another row. One
// warpgroup makes the scores and exponentials of a chunk and how it joins, two the result of the chunk before it, 256
// columns each; the warps of the fourth bring keys and queries. Chunks are attention.cuh's, so are the bits.
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
inline constexpr int kRopeDims = 64, kCodes = kDim - kRopeDims;  // of rows in FP8: seven tiles of codes, one of BF16
inline constexpr int kTileBytes = kTile * 128, kRowsBytes = kDim / kTile * kTileBytes;  // of 64 rows
inline constexpr int kGroup = 128, kAdders = 2 * kGroup, kPair = kGroup / 2;  // threads
inline constexpr int kFirstWeigher = kAdders, kFirstProducer = kAdders + kGroup, kThreads = kAdders + 2 * kGroup;
inline constexpr int kColumns = 256, kPieces = kColumns / kTile;  // of a warpgroup's result
static_assert(kChunk == kTile && kHeads == kTile);

struct Shared {
  char queries[kRowsBytes];
  char keys[2][kRowsBytes];
  char probs[kTileBytes];      // [head][key], a tile
  char out[8][16 * 64];        // of each warp: 16 heads, 32 columns
  float stash[32][kGroup];     // of each thread of the weigher: scores of a row's first chunk until the second's are there
  float2 factors[kHeads];      // of the total so far and of the chunk
  float inverse[2][kHeads];    // of the sums, of this row and the next; made with the last chunk
  float2 turns[2][kMaxPairs];  // likewise, with the first chunk
  int last;                    // whether the row ends with this chunk
  // Ends once for each chunk: probs and all that is made with them are there. Every thread of the weigher arrives, for
  // what it wrote itself: racecheck follows that, and not bar.arrive after writes.
  uint64_t probs_full;
  // Ends once for each chunk, when a quarter of its products is made. The scores of the next chunk wait for that, to leave
  // the tensor cores to this one; nothing else depends on it.
  uint64_t piece_added;
};
inline constexpr int kSharedBytes = sizeof(Shared);

// Named barriers. Full: those who made it arrive, those who read it wait. Empty: the other way round.
enum Barrier : int {
  kKeysFull = 1,       // of each stage
  kKeysEmpty = 3,      // of each stage and half of the tiles: a warpgroup's first two, its last two
  kProbsRead = 7,      // and factors, last; inverse and turns of the row before
  kQueriesFull = 8,
  kQueriesEmpty = 9,   // for each pair, whose turn it is
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

// What a lane copies from, of 32 rows: eight lanes copy 128 bytes of a row, so rows take eight turns. Each address has
// registers of its own, because a copy holds them until it is sent. nullptr: zeros.
struct Sources {
  const char* at[8];
  uint32_t packed = 0;  // bit i: the row of turn i is in FP8
};
// Lane l says where row l lies, and whether it is in FP8: then eight lanes copy 64 codes of it.
template <bool kFp8>
__device__ inline Sources sources_of(const char* row, bool packed) {
  const int lane = threadIdx.x % 32;
  const auto bits = reinterpret_cast<unsigned long long>(row);
  uint32_t all_packed = 0;
  if constexpr (kFp8) all_packed = __ballot_sync(~0u, packed);
  Sources s;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const char* from = reinterpret_cast<const char*>(__shfl_sync(~0u, bits, i * 4 + lane / 8));
    const uint32_t mine = all_packed >> (i * 4 + lane / 8) & 1u;
    s.packed |= mine << i;
    s.at[i] = from ? from + lane % 8 * (mine ? 8 : 16) : nullptr;
  }
  return s;
}
// Of rows one after the other.
__device__ inline Sources sources_from(const char* rows) {
  const int lane = threadIdx.x % 32;
  Sources s;
#pragma unroll
  for (int i = 0; i < 8; ++i) s.at[i] = rows + lane / 8 * kDim * 2 + lane % 8 * 16 + i * 4 * kDim * 2;
  return s;
}
// The tile of a half.
__device__ inline int tile_of(int half, int k) { return k / 2 * kPieces + half * 2 + k % 2; }
// Half of the tiles of the rows, to row `first` on.
__device__ inline void copy_rows(char* to, int first, const Sources& sources, int half) {
  const int lane = threadIdx.x % 32;
  char* const at[2] = {to + place(first + lane / 8, lane % 8), to + place(first + lane / 8 + 4, lane % 8)};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const char* from = sources.at[i];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int tile = tile_of(half, k);
      copy_async_16_or_zero(at[i % 2] + i / 2 * 8 * 128 + tile * kTileBytes, from + tile * 128, from);
    }
  }
}

// Addresses that follow from it are made where they are used: kept from chunk to chunk they would be spilled.
__device__ inline int fresh_lane() {
  int lane = threadIdx.x % 32;
  asm volatile("" : "+r"(lane));
  return lane;
}

// Where this lane's eight codes of a tile wait to become BF16: in the place of their row, in one half or the other, so
// that two rows meet different banks. Four rows further down 512 bytes on.
__device__ inline char* codes_place(char* to, int first, int lane) {
  return to + (first + lane / 8) * 128 + lane / 8 % 2 * 64 + lane % 8 * 8;
}
// copy_rows where rows may be in FP8: codes as they are, RoPE dims to where they stay. Both kinds of copies in a row, each
// under its condition, as branches would take turns.
template <int kHalf>
__device__ inline void copy_packed_rows(char* to, int first, const Sources& sources) {
  const int lane = fresh_lane();
  char* const at[2] = {to + place(first + lane / 8, lane % 8), to + place(first + lane / 8 + 4, lane % 8)};
  char* const codes = codes_place(to, first, lane);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const char* from = sources.at[i];
    const bool packed = sources.packed >> i & 1u;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int tile = tile_of(kHalf, k);
      if (!packed) copy_async_16_or_zero(at[i % 2] + i / 2 * 8 * 128 + tile * kTileBytes, from + tile * 128, from);
      if (packed && tile < kCodes / kTile) copy_async_8(codes + i * 4 * 128 + tile * kTileBytes, from + tile * 64);
    }
  }
  if (kHalf == 0) return;
  const int ahead = lane % 8 * 8;  // eight lanes copy 128 bytes
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (!(sources.packed >> i & 1u)) continue;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      copy_async_8(at[i % 2] + i / 2 * 8 * 128 + kCodes / kTile * kTileBytes + k * 8, sources.at[i] + ahead + kCodes + k * 8);
    }
  }
}

// The scales of 32 rows in FP8, each lane's its own, as first factors (kv_row.cuh): of two tiles in a word.
struct Factors {
  uint32_t of[4] = {};
  bool large = false;  // a row here needs second factors
};
__device__ inline uint2 scales_at(const char* row) { return *reinterpret_cast<const uint2*>(row + kCodes + 2 * kRopeDims); }
__device__ inline Factors factors_of(const char* row, bool packed) {
  const uint2 scales = packed ? scales_at(row) : uint2{0, 0};
  Factors f;
#pragma unroll
  for (int tile = 0; tile < kCodes / kTile; ++tile) {
    const uint32_t scale = (tile < 4 ? scales.x : scales.y) >> tile % 4 * 8 & 255u;
    f.of[tile / 2] |= kv_factor(scale) << tile % 2 * 16;
    f.large |= scale > kLargestKvScale;
  }
  f.large = __any_sync(~0u, f.large);
  return f;
}

// Codes of a half of the tiles to BF16, after this warp's copies have come: a lane takes what it copied. A loop: code that
// is run through once per chunk would have to be fetched each time.
__device__ inline void widen_rows(char* to, int first, uint32_t packed, const Factors& factors, int half) {
  const int lane = fresh_lane();
  char* const at[2] = {to + place(first + lane / 8, lane % 8), to + place(first + lane / 8 + 4, lane % 8)};
  const char* const codes = codes_place(to, first, lane);
#pragma unroll 2
  for (int k = 0; k < (half == 0 ? 4 : 3); ++k) {
    const int tile = tile_of(half, k), offset = tile * kTileBytes;
    const uint32_t word = half == 0 ? (k < 2 ? factors.of[0] : factors.of[2]) : (k < 2 ? factors.of[1] : factors.of[3]);
    const uint32_t mine = __byte_perm(word, 0, tile % 2 ? 0x3232 : 0x1010);
#pragma unroll
    for (int turn = 0; turn < 8; turn += 4) {
      uint2 v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (packed >> (turn + i) & 1u) v[i] = *reinterpret_cast<const uint2*>(codes + offset + (turn + i) * 4 * 128);
      }
      __syncwarp();
      uint32_t factor[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) factor[i] = __shfl_sync(~0u, mine, (turn + i) * 4 + lane / 8);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint4 w = widen_codes(v[i], factor[i]);
        if (packed >> (turn + i) & 1u) *reinterpret_cast<uint4*>(at[i % 2] + offset + (turn + i) / 2 * 8 * 128) = w;
      }
    }
  }
}
// The second factors of what widen_rows made.
__device__ __noinline__ void scale_rows(char* to, int first, const char* row, bool packed) {
  const int lane = threadIdx.x % 32;
  const uint2 scales = packed ? scales_at(row) : uint2{0, 0};
  for (int turn = 0; turn < 8; ++turn) {
    const uint2 s = {__shfl_sync(~0u, scales.x, turn * 4 + lane / 8), __shfl_sync(~0u, scales.y, turn * 4 + lane / 8)};
    const bool mine = __shfl_sync(~0u, packed, turn * 4 + lane / 8);
    for (int tile = 0; mine && tile < kCodes / kTile; ++tile) {
      uint4& v = *reinterpret_cast<uint4*>(to + place(first + turn * 4 + lane / 8, tile * 8 + lane % 8));
      v = scale_again(v, kv_second_factor((tile < 4 ? s.x : s.y) >> tile % 4 * 8 & 255u) * 0x10001u);
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

template <bool kFp8>
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
  char* const keys = shared.keys[pair];
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
      if (brought) {
        const Sources sources = sources_of<kFp8>(ring_row(key), kFp8);
        if constexpr (kFp8) {
          copy_packed_rows<0>(keys, first, sources);
          copy_packed_rows<1>(keys, first, sources);
        } else {
          for (int half = 0; half < 2; ++half) copy_rows(keys, first, sources, half);
        }
      }
      wait_for_previous();
      waited = true;
    }
    const int all = window + entry_keys(a, t, position), chunks = (all + kChunk - 1) / kChunk;
    const auto in_cache = [&](int key) { return kFp8 && key < all && (key >= window || in_ring(key)); };
    const char* row = x < chunks ? key_row(x * kChunk + mine, all) : nullptr;
    if (pair == queries_pair(chunk)) {
      if (round > 0) barrier_sync<kProducersAndWeigher>(kQueriesEmpty + pair);
      const Sources heads = sources_from(queries(item) + first * kDim * 2);
      for (int half = 0; half < 2; ++half) copy_rows(shared.queries, first, heads, half);
      const int next = item + static_cast<int>(gridDim.x);
      if (mine == 0 && next < items) prefetch_l2(queries(next), kRowsBytes);
      await_copies();
      barrier_arrive<kProducersAndWeigher>(kQueriesFull);
    }
    for (; x < chunks; x += 2) {
      const bool packed = in_cache(x * kChunk + mine);
      const char* next = nullptr;
      const Sources sources = sources_of<kFp8>(row, packed);
      if constexpr (kFp8) {
        if (used) barrier_sync<kProducersAndAdders>(kKeysEmpty + pair * 2);
        if (!brought) copy_packed_rows<0>(keys, first, sources);
        copy_async_commit();
        if (used) barrier_sync<kProducersAndAdders>(kKeysEmpty + pair * 2 + 1);
        if (!brought) copy_packed_rows<1>(keys, first, sources);
        copy_async_commit();
        const Factors factors = factors_of(row, packed);
        next = x + 2 < chunks ? key_row((x + 2) * kChunk + mine, all) : nullptr;
        for (int half = 0; half < 2; ++half) {
          if (half == 0) copy_async_wait<1>();
          else copy_async_wait<0>();
          widen_rows(keys, first, sources.packed, factors, half);
        }
        if (factors.large) scale_rows(keys, first, row, packed);
        fence_for_wgmma();
      } else {
        for (int half = 0; half < 2; ++half) {
          if (used) barrier_sync<kProducersAndAdders>(kKeysEmpty + pair * 2 + half);
          if (!brought) copy_rows(keys, first, sources, half);
        }
        await_copies();
      }
      used = true;
      brought = false;
      barrier_arrive<kProducersAndWeigher>(kKeysFull + pair);
      if constexpr (kFp8) row = next;
      else if (x + 2 < chunks) row = key_row((x + 2) * kChunk + mine, all);
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

// Scores of one thread in shared memory.
struct Stashed {
  const float* first;
  __device__ float operator[](int i) const { return first[i * kGroup]; }
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

__device__ inline void make_probs(const AttentionParams& p, Shared& shared, int items) {
  wait_for_previous();
  RowKeys rows(p.a, items);
  int chunk = 0;  // of all that this block takes
  const int mine = threadIdx.x - kFirstWeigher, lane = mine % 32;
  const bool turns = p.rope.freqs && mine < p.rope.r / 2;
  const int head = mine / 32 * 16 + lane / 4, groups = static_cast<int>(p.a.H) / kHeads;  // and head + 8
  float* const stash = &shared.stash[0][mine];
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
    barrier_sync<kProducersAndWeigher>(kQueriesFull);
    float top[2] = {-INFINITY, -INFINITY};
    for (int k = 0; k < chunks; ++k) {
      if (k >= kTogether) barrier_wait(&shared.piece_added, chunk + k - 1);
      const int stage = (chunk + k) % 2;
      barrier_sync<kProducersAndWeigher>(kKeysFull + stage);
      float s[32];
      score(shared.queries, shared.keys[stage], s);
      if (k + 1 == chunks) barrier_arrive<kProducersAndWeigher>(kQueriesEmpty + queries_pair(chunk + chunks));
      highest_of(all - k * kChunk, s, top);
      if (k == 0 && chunks > 1) {  // both maxima first
#pragma unroll
        for (int i = 0; i < 32; ++i) stash[i * kGroup] = s[i];
        continue;
      }
      highest_of_four(top);
      top[0] *= p.scale;
      top[1] *= p.scale;
      if (k == 1) hand_over(Stashed{stash}, top, 0);
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

__device__ inline void add_up(const AttentionParams& p, Shared& shared, int items) {
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
        if (piece % 2 == 1) barrier_arrive<kProducersAndAdders>(kKeysEmpty + stage * 2 + piece / 2);
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
  Shared& shared = *reinterpret_cast<Shared*>(attention_shared);
  if (threadIdx.x == 0) {
    barrier_init(&shared.probs_full, kGroup);
    barrier_init(&shared.piece_added, 2);
  }
  __syncthreads();
  // Registers of a thread: 128, or 2 * 184 + 88 + 56 for one of each warpgroup.
  if (threadIdx.x >= kFirstProducer) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
#endif
    produce<kFp8>(p, shared, items);
  } else if (threadIdx.x >= kFirstWeigher) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.dec.sync.aligned.u32 88;");
#endif
    make_probs(p, shared, items);
  } else {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.inc.sync.aligned.u32 184;");
#endif
    add_up(p, shared, items);
  }
}

}  // namespace dsv4::cuda::many
