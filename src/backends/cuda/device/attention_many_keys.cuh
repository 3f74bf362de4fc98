// What attention_many.cuh shares among its warps, and the warps that bring keys and queries.
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

// Scores of a row's first chunk, of each thread of the weigher, until the second's are there. Where rows are in FP8 there
// is no room for them: they wait in local memory.
struct Stash {
  float scores[32][kGroup];
};
// Of rows in FP8: pairs of rows of each warp as they lie in the cache, on their way to become BF16. With them come the
// bytes before and after that make them multiples of 16, as every second row is aligned to 8 only.
inline constexpr int kWarps = kGroup / 32, kWarpRows = kChunk / kWarps, kPairsAhead = 3;
inline constexpr int kPackedBytes = (kCodes + 2 * kRopeDims + static_cast<int>(kKvScaleBytes) + 15) / 16 * 16;
static_assert(kKvScaleBytes == 8 && kPackedBytes == 592);
struct PackedRows {
  char of[kWarps][kPairsAhead][2][kPackedBytes];
};

template <bool kFp8>
struct Shared {
  char queries[kRowsBytes];
  char keys[2][kRowsBytes];
  char probs[kTileBytes];      // [head][key], a tile
  char out[8][16 * 64];        // of each warp: 16 heads, 32 columns
  std::conditional_t<kFp8, PackedRows, Stash> aside;
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
template <bool kFp8>
inline constexpr int kSharedBytes = sizeof(Shared<kFp8>);

// Named barriers. Full: those who made it arrive, those who read it wait. Empty: the other way round.
enum Barrier : int {
  kKeysFull = 1,       // of each stage
  kKeysEmpty = 3,      // of each stage and half of the tiles: a warpgroup's first two, its last two; in FP8 of both with the last
  kProbsRead = 7,      // and factors, last; inverse and turns of the row before
  kQueriesFull = 8,    // in FP8 they come with the first keys
  kQueriesEmpty = 9,   // for each pair, whose turn it is; in FP8 the first one
};
// Those who bring a chunk: a pair of warps, or all four where rows are in FP8.
template <bool kFp8>
inline constexpr int kProducersAndWeigher = (kFp8 ? kGroup : kPair) + kGroup;
template <bool kFp8>
inline constexpr int kProducersAndAdders = (kFp8 ? kGroup : kPair) + kAdders;
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
};
// Lane l says where row l lies.
__device__ inline Sources sources_of(const char* row) {
  const int lane = threadIdx.x % 32;
  const auto bits = reinterpret_cast<unsigned long long>(row);
  Sources s;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const char* from = reinterpret_cast<const char*>(__shfl_sync(~0u, bits, i * 4 + lane / 8));
    s.at[i] = from ? from + lane % 8 * 16 : nullptr;
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

// Which pair brings the queries of a row that begins with `chunk` of all that the block takes: not the one that brings
// this chunk. The place of queries is free before that of the next chunk, and they are needed first.
__device__ inline int queries_pair(int chunk) { return (chunk + 1) % 2; }

__device__ inline void await_copies() {
  copy_async_commit();
  copy_async_wait<0>();
  fence_for_wgmma();
}

// Where the keys of a row of the batch lie: those of its window in the ring, or in kv where this batch brought them, then
// the entries.
class KeyRows {
 public:
  __device__ KeyRows(const AttentionArgs& a, int64_t t) : a_(a) { move_to(t); }
  __device__ void move_to(int64_t t) {
    t_ = t;
    position_ = a_.batch.positions[t];
    seq_ = a_.batch.row_seq[t];
    first_row_ = a_.batch.seq_begin[seq_];
    first_position_ = a_.batch.positions[first_row_];
    window_ = window_keys(a_, position_);
    ring_ = a_.ring.data + static_cast<int64_t>(a_.batch.seq_slot[seq_]) * a_.ring.rows * a_.ring.row_bytes;
  }
  // Of the keys of the window: those that are older than the batch.
  __device__ bool in_ring(int key) const { return key < window_ && position_ - window_ + 1 + key < first_position_; }
  __device__ const char* ring_row(int key) const {
    return ring_ + (position_ - window_ + 1 + key) % static_cast<int>(a_.ring.rows) * a_.ring.row_bytes;
  }
  // After wait_for_previous().
  __device__ int count() const { return window_ + entry_keys(a_, t_, position_); }
  // Which entry a key behind the window is.
  __device__ int entry(int key) const { return a_.selected ? a_.selected[t_ * a_.topk + key - window_] : key - window_; }
  __device__ const char* entry_row(int entry) const {
    const int per_page = static_cast<int>(a_.entries.per_page);
    const int64_t page = a_.batch.seq_pages[seq_ * a_.batch.max_pages + entry / per_page];
    return a_.entries.data + (page * per_page + entry % per_page) * a_.entries.row_bytes;
  }
  __device__ bool in_window(int key) const { return key < window_; }
  __device__ const char* window_row(int key) const {
    if (in_ring(key)) return ring_row(key);
    return reinterpret_cast<const char*>(a_.kv + static_cast<int64_t>(first_row_ + position_ - window_ + 1 + key - first_position_) * kDim);
  }
  // Of a key below count().
  __device__ const char* row(int key) const { return in_window(key) ? window_row(key) : entry_row(entry(key)); }

 private:
  const AttentionArgs& a_;
  int64_t t_;
  int position_, seq_, first_row_, first_position_, window_;
  const char* ring_;
};

// The first query of an item.
__device__ inline const char* queries_of(const AttentionArgs& a, int item) {
  const int H = static_cast<int>(a.H), groups = H / kHeads;
  return reinterpret_cast<const char*>(a.q + (static_cast<int64_t>(item / groups) * H + item % groups * kHeads) * kDim);
}

// Rows of the cache in BF16.
__device__ inline void produce(const AttentionParams& p, Shared<false>& shared, int items) {
  const AttentionArgs& a = p.a;
  const int warp = (threadIdx.x - kFirstProducer) / 32, lane = threadIdx.x % 32;
  const int pair = warp / 2, first = warp % 2 * 32, mine = first + lane;  // this lane's key of a chunk, head of a group
  const int groups = static_cast<int>(a.H) / kHeads;
  int chunk = 0;  // of all that this block takes
  bool waited = false, used = false;
  char* const keys = shared.keys[pair];
  for (int item = blockIdx.x, round = 0; item < items; item += gridDim.x, ++round) {
    const KeyRows rows(a, item / groups);
    int x = (chunk + pair) % 2;  // the first chunk of the row that is this pair's
    bool brought = false;
    if (!waited) {
      // Rows of the window that are older than the batch are there already.
      const int key = x * kChunk + mine;
      brought = __all_sync(~0u, rows.in_ring(key));
      if (brought) {
        const Sources sources = sources_of(rows.ring_row(key));
        for (int half = 0; half < 2; ++half) copy_rows(keys, first, sources, half);
      }
      wait_for_previous();
      waited = true;
    }
    const int all = rows.count(), chunks = (all + kChunk - 1) / kChunk;
    const auto key_row = [&](int key) -> const char* { return key < all ? rows.row(key) : nullptr; };
    const char* row = x < chunks ? key_row(x * kChunk + mine) : nullptr;
    if (pair == queries_pair(chunk)) {
      if (round > 0) barrier_sync<kProducersAndWeigher<false>>(kQueriesEmpty + pair);
      const Sources heads = sources_from(queries_of(a, item) + first * kDim * 2);
      for (int half = 0; half < 2; ++half) copy_rows(shared.queries, first, heads, half);
      const int next = item + static_cast<int>(gridDim.x);
      if (mine == 0 && next < items) prefetch_l2(queries_of(a, next), kRowsBytes);
      await_copies();
      barrier_arrive<kProducersAndWeigher<false>>(kQueriesFull);
    }
    for (; x < chunks; x += 2) {
      const Sources sources = sources_of(row);
      for (int half = 0; half < 2; ++half) {
        if (used) barrier_sync<kProducersAndAdders<false>>(kKeysEmpty + pair * 2 + half);
        if (!brought) copy_rows(keys, first, sources, half);
      }
      await_copies();
      used = true;
      brought = false;
      barrier_arrive<kProducersAndWeigher<false>>(kKeysFull + pair);
      if (x + 2 < chunks) row = key_row((x + 2) * kChunk + mine);
    }
    chunk += chunks;
  }
  // What was given back last.
  if (!waited) wait_for_previous();
  for (int half = 0; half < 2 && used; ++half) barrier_sync<kProducersAndAdders<false>>(kKeysEmpty + pair * 2 + half);
  if (chunk > 0 && pair == queries_pair(chunk)) barrier_sync<kProducersAndWeigher<false>>(kQueriesEmpty + pair);
}

// A row of a chunk, as lanes tell each other: its address, 1 more where it is in FP8; 0: zeros.
using RowAddress = unsigned long long;
__device__ inline RowAddress address_of(const char* row, bool packed) { return reinterpret_cast<RowAddress>(row) + packed; }

// Half of a warp asks for a row in FP8; `to`: place of this lane's first piece.
__device__ inline void request_row(char* to, RowAddress row) {
  const int lane = threadIdx.x % 16;
  const char* const from = reinterpret_cast<const char*>(row & ~RowAddress{15}) + lane * 16;
  copy_async_16(to, from);
  copy_async_16(to + 256, from + 256);
  copy_async_16_if(to + 512, from + 512, lane < kPackedBytes / 16 - 32);
}

// A row in FP8 that has come, in registers of half a warp: of two tiles at a time, eight codes a lane. Sixteen lanes read 128
// bytes in a row and eight write 128, so they meet different banks.
struct PackedRow {
  uint2 codes[4], rope, scales;

  __device__ explicit PackedRow(const char* row) {
    const char* const mine = row + threadIdx.x % 16 * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] = *reinterpret_cast<const uint2*>(mine + i * 2 * kTile);  // of the last one half
    rope = *reinterpret_cast<const uint2*>(mine + kCodes);
    scales = *reinterpret_cast<const uint2*>(row + kCodes + 2 * kRopeDims);
  }
  // `to`: place of its piece `lane`; `rope_to`: of eight bytes of RoPE dims. Wrong where a scale is above kLargestKvScale.
  __device__ void widen(char* to, char* rope_to) const {
    const int odd = threadIdx.x / 8 % 2;
    const uint32_t scale[4] = {__byte_perm(scales.x, 0, 0x4440 + odd), __byte_perm(scales.x, 0, 0x4442 + odd),
                               __byte_perm(scales.y, 0, 0x4440 + odd), __byte_perm(scales.y, 0, 0x4442)};
    uint4 w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w[i] = widen_codes(codes[i], kv_factor(scale[i]));
      // All are made before the stores, which hold their registers until they are sent.
      asm volatile("" : "+r"(w[i].x), "+r"(w[i].y), "+r"(w[i].z), "+r"(w[i].w));
    }
    *reinterpret_cast<uint2*>(rope_to) = rope;
#pragma unroll
    for (int i = 0; i < 3; ++i) *reinterpret_cast<uint4*>(to + i * 2 * kTileBytes) = w[i];
    if (!odd) *reinterpret_cast<uint4*>(to + 6 * kTileBytes) = w[3];
  }
};
// Rows in FP8 with any scales, from where they lie.
__device__ __noinline__ void widen_any(char* to, int first, RowAddress row) {
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < kWarpRows; ++i) {
    const RowAddress from = __shfl_sync(~0u, row, i);
    if (from % 2 == 0) continue;
    const char* const codes = reinterpret_cast<const char*>(from - 1);
    for (int tile = lane / 8; tile < kCodes / kTile; tile += 4) {
      const uint32_t scale = static_cast<uint8_t>(codes[kCodes + 2 * kRopeDims + tile]);
      const uint4 v = widen_codes(*reinterpret_cast<const uint2*>(codes + tile * kTile + lane % 8 * 8), kv_factor(min(scale, kLargestKvScale)));
      *reinterpret_cast<uint4*>(to + place(first + i, tile * 8 + lane % 8)) = scale_again(v, kv_second_factor(scale) * 0x10001u);
    }
  }
}

using WaitingRows = char[kPairsAhead][2][kPackedBytes];
// The first pairs of the 16 rows of a warp.
template <bool kAll>
__device__ inline void request_pairs(WaitingRows& waiting, RowAddress row) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kPairsAhead; ++i) {
    const RowAddress from = __shfl_sync(~0u, row, i * 2 + lane / 16);
    if (kAll || from % 2) request_row(waiting[i][lane / 16] + lane % 16 * 16, from);
    copy_async_commit();
  }
}
__device__ inline void request_pairs(WaitingRows& waiting, RowAddress row) {
  if (__all_sync(~0u, row % 2)) request_pairs<true>(waiting, row);
  else request_pairs<false>(waiting, row);
}

// The 16 rows of a warp to their place, in pairs; the first ones are asked for. kAll: all are in FP8. Comes back: whether that
// does for their scales; it does for those below 128, a scale of 2, and keys are normalised.
template <bool kAll>
__device__ inline bool bring(char* keys, WaitingRows& waiting, int first, RowAddress row) {
  const int lane = threadIdx.x % 32, mine = lane / 16, piece = lane % 16;
  const int place_of_codes = place(first + mine, piece), place_of_rope = place(first + mine, kCodes / 8 + piece / 2) + piece % 2 * 8;
  const uint32_t offsets = __ballot_sync(~0u, row % 16 >= 8) << 3 >> mine;
  // So many rows further down, a multiple of two: the swizzle differs in these bits.
  const auto down = [&](int at, int rows) { return keys + ((at + rows * 128) ^ rows % 8 * 16); };
  uint32_t scales = 0;
  int from = 0;  // place of the pair in `waiting`
  const auto bring_pair = [&](int i, bool more) {
    copy_async_wait<kPairsAhead - 1>();
    __syncwarp();
    char* const here = waiting[0][mine] + from;
    const PackedRow packed(here + (offsets >> i & 8));
    const RowAddress later = more ? __shfl_sync(~0u, row, i + 2 * kPairsAhead + mine) : 0;
    const RowAddress now = kAll ? 1 : __shfl_sync(~0u, row, i + mine);
    __syncwarp();
    if (more && (kAll || later % 2)) request_row(here + piece * 16, later);
    copy_async_commit();
    if (kAll || now % 2) {
      packed.widen(down(place_of_codes, i), down(place_of_rope, i));
      scales |= packed.scales.x | packed.scales.y;
    } else {
      const char* const at = reinterpret_cast<const char*>(now) + piece * 16;
#pragma unroll
      for (int k = 0; k < 4; ++k) copy_async_16_or_zero(down(place_of_codes, i) + k * 2 * kTileBytes, at + k * 256, now);
    }
    from = from < static_cast<int>(sizeof(WaitingRows) - sizeof(waiting[0])) ? from + static_cast<int>(sizeof(waiting[0])) : 0;
  };
  constexpr int kLast = kWarpRows - 2 * kPairsAhead;
  if constexpr (kAll) {
#pragma unroll 1
    for (int i = 0; i < kLast; i += 2) bring_pair(i, true);
#pragma unroll 1
    for (int i = kLast; i < kWarpRows; i += 2) bring_pair(i, false);
  } else {
#pragma unroll 1
    for (int i = 0; i < kWarpRows; i += 2) bring_pair(i, i < kLast);
  }
  static_assert(kLargestKvScale >= 127);
  return __all_sync(~0u, (scales & 0x80808080u) == 0);
}

// Rows of the cache in FP8: all four warps bring a chunk, 16 rows each. Rows wait as they are for the place that they become
// BF16 in, so that it is not empty while they come.
__device__ inline void produce_packed(const AttentionParams& p, Shared<true>& shared, int items) {
  const AttentionArgs& a = p.a;
  const int warp = (threadIdx.x - kFirstProducer) / 32, lane = threadIdx.x % 32;
  const int first = warp * kWarpRows, mine = first + lane % kWarpRows;  // this lane's key of a chunk
  const int groups = static_cast<int>(a.H) / kHeads;
  WaitingRows& waiting = shared.aside.of[warp];
  int item = blockIdx.x;
  KeyRows rows(a, item / groups);
  // Rows of the window that are older than the batch are there already.
  const bool early = __all_sync(~0u, rows.in_ring(mine));
  RowAddress row = early ? address_of(rows.ring_row(mine), true) : 0;
  if (early) request_pairs<true>(waiting, row);
  wait_for_previous();
  int all = rows.count(), x = 0, chunk = 0;  // key and chunk of the row, of all that this block takes
  int entry = 0;                             // of this lane's key of the chunk that is looked up next, if it has one
  const auto look_up_entry = [&](int key) {
    if (key < all && !rows.in_window(key)) entry = rows.entry(key);
  };
  const auto look_up = [&](int key) -> RowAddress {
    if (key >= all) return 0;
    return rows.in_window(key) ? address_of(rows.window_row(key), rows.in_ring(key)) : address_of(rows.entry_row(entry), true);
  };
  look_up_entry(mine);
  if (!early) {
    row = look_up(mine);
    request_pairs(waiting, row);
  }
  look_up_entry(kChunk + mine);
  for (bool more = true; more; ++chunk) {
    if (x == 0) {
      if (chunk > 0) barrier_sync<kProducersAndWeigher<true>>(kQueriesEmpty);
      const char* const from = queries_of(a, item) + (first + lane / 16) * (kDim * 2) + lane % 16 * 16;
      for (int i = 0; i < kWarpRows; i += 2) {
        char* const to = shared.queries + place(first + i + lane / 16, lane % 16);
#pragma unroll
        for (int k = 0; k < 4; ++k) copy_async_16(to + k * 2 * kTileBytes, from + i * (kDim * 2) + k * 256);
      }
      const int next = item + static_cast<int>(gridDim.x);
      if (warp == 0 && lane == 0 && next < items) prefetch_l2(queries_of(a, next), kRowsBytes);
    }
    // The chunk after this one, and what those behind it are looked up by.
    x += kChunk;
    if (x >= all) {
      x = 0;
      item += static_cast<int>(gridDim.x);
      more = item < items;
      if (more) {
        rows.move_to(item / groups);
        all = rows.count();
        look_up_entry(mine);
      }
    }
    RowAddress next = 0;
    if (more) {
      next = look_up(x + mine);
      look_up_entry(x + kChunk + mine);
    }
    const int stage = chunk % 2;
    char* const keys = shared.keys[stage];
    if (chunk > 1) barrier_sync<kProducersAndAdders<true>>(kKeysEmpty + stage * 2 + 1);
    const bool done = __all_sync(~0u, row % 2) ? bring<true>(keys, waiting, first, row) : bring<false>(keys, waiting, first, row);
    if (!done) widen_any(keys, first, row);
    await_copies();
    barrier_arrive<kProducersAndWeigher<true>>(kKeysFull + stage);
    row = next;
    if (more) request_pairs(waiting, row);
  }
  // What was given back last.
  for (int i = chunk > 1 ? chunk - 2 : 0; i < chunk; ++i) barrier_sync<kProducersAndAdders<true>>(kKeysEmpty + i % 2 * 2 + 1);
  barrier_sync<kProducersAndWeigher<true>>(kQueriesEmpty);
}

}  // namespace dsv4::cuda::many
