// The best of a row's scores by the blocks of a cluster, of which each has those of neighbouring entries in its shared
// memory: the k-th largest by digits of eight bits, until few share its prefix; these are ranked one against the
// other. The chosen leave in order of index; of those equal to the k-th, the lowest indices.
//
// Every block sends each of the others its histogram (cluster.cuh), so all know how many keys of which block are
// larger: two or three exchanges, no barrier of the cluster.
//
// Few keys are all sent to every block, which ranks its own among them: no digits, two exchanges and little code, which
// mostly is not in the instruction cache when its turn comes.
#pragma once

#include "backends/cuda/core.h"
#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/rows.cuh"

namespace dsv4::cuda {

inline constexpr int kMostSelectWarps = 16;
inline constexpr int kSelectMost = 0xffff;  // keys of a block: counts are sent in 16 bits
inline constexpr int kBins = 256, kDigits = 4;
inline constexpr int kCandidates = 128;  // so few are ranked

struct Selection {
  Arrivals counted[kDigits], gathered;
  uint2 candidates[kCandidates];  // key, index
  int2 bins[8][kBins / 8];        // keys of all blocks, of those before this one; bin b at [b % 8][b / 8]
  alignas(16) int histogram[2][kBins];
  alignas(16) uint16_t blocks[2][kMaxCluster][kBins];  // each block's histogram; digits take turns
  int listed;
  uint32_t edge;
  int2 warps[kMostSelectWarps];
};

// Larger float, larger key; NaN above all. 0 is no key.
__device__ inline uint32_t ordered(float v) {
  const uint32_t u = float_to_bits(v);
  return max(u & 0x80000000u ? ~u : u | 0x80000000u, 1u);
}

// First thing of a block that is going to select, of 256 or 512 threads. One alone is no cluster.
__device__ inline void begin_selection(Selection& s, int blocks) {
  if (threadIdx.x == 0) s.listed = 0;
  if (threadIdx.x < kBins) s.histogram[0][threadIdx.x] = 0;
  if (blocks == 1) return;
  if (threadIdx.x == 0) {
    for (Arrivals& a : s.counted) expect_arrivals(a, static_cast<uint32_t>(blocks) * kBins * 2);
    prepare_arrivals(s.gathered);
  }
  block_started();
}

// The blocks' histograms of a digit become `bins`; histogram[digit % 2] is complete and visible, the other one is zero
// after this and __syncthreads().
__device__ inline void add_histograms(Selection& s, int digit, int rank, int blocks) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int* const here = s.histogram[digit % 2];
  uint16_t(&all)[kMaxCluster][kBins] = s.blocks[digit % 2];
  if (blocks > 1) {
    for (int b = warp; b < blocks; b += static_cast<int>(blockDim.x) / 32) {
      const int4 low = *reinterpret_cast<const int4*>(here + 8 * lane), high = *reinterpret_cast<const int4*>(here + 8 * lane + 4);
      const auto both = [](int a, int b) { return static_cast<uint32_t>(a) | static_cast<uint32_t>(b) << 16; };
      send(reinterpret_cast<uint4*>(&all[rank][8 * lane]),
           {both(low.x, low.y), both(low.z, low.w), both(high.x, high.y), both(high.z, high.w)}, s.counted[digit], b);
    }
    wait_arrivals(s.counted[digit]);
  }
  if (threadIdx.x >= kBins) return;
  int2 sum = {blocks == 1 ? here[threadIdx.x] : 0, 0};
  for (int b = 0; b < blocks && blocks > 1; ++b) {
    const int count = all[b][threadIdx.x];
    sum.x += count;
    if (b < rank) sum.y += count;
  }
  s.bins[threadIdx.x % 8][threadIdx.x / 8] = sum;
  s.histogram[(digit + 1) % 2][threadIdx.x] = 0;
}

// What a search knows after a digit.
struct Cut {
  uint32_t prefix = 0;
  int shift = 32;           // prefix: of keys >> shift
  int wanted, count;        // keys with this prefix: to choose, in all
  int above = 0, same = 0;  // in blocks before this one: keys with a larger prefix, with this one
};

// The bin that the wanted-th key from above falls into, by each warp for itself.
__device__ inline void find_bin(const Selection& s, Cut& cut) {
  const int lane = threadIdx.x % 32;
  // Lane l holds bins 255 - 8 l down to 248 - 8 l.
  int2 bin[8];
  int share = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    bin[i] = s.bins[7 - i][31 - lane];
    share += bin[i].x;
  }
  int through = share;
#pragma unroll
  for (int o = 1; o < 32; o *= 2) {
    const int other = __shfl_up_sync(~0u, through, o);
    if (lane >= o) through += other;
  }
  int left = cut.wanted - (through - share), above = 0, found = -1, count = 0, same = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (found >= 0) continue;
    if (left > bin[i].x) {
      left -= bin[i].x;
      above += bin[i].y;
    } else if (left > 0) {
      found = kBins - 1 - 8 * lane - i;
      count = bin[i].x;
      same = bin[i].y;
    }
  }
  cut.above += __reduce_add_sync(~0u, above);
  const int from = __ffs(static_cast<int>(__ballot_sync(~0u, found >= 0))) - 1;
  cut.prefix = cut.prefix << 8 | static_cast<uint32_t>(__shfl_sync(~0u, found, from));
  cut.wanted = __shfl_sync(~0u, left, from);
  cut.count = __shfl_sync(~0u, count, from);
  cut.same = __shfl_sync(~0u, same, from);
}

// f(i, key) for every key of this thread's, four neighbours at a time.
template <class F>
__device__ void for_keys(const uint32_t* keys, int n, F f) {
  for (int i = threadIdx.x * 4; i < n; i += static_cast<int>(blockDim.x) * 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(keys + i);
    const uint32_t v[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (i + e < n) f(i + e, v[e]);
    }
  }
}

// Bits 0 to 15: how many of four neighbours from keys[i] on, below n, have a larger prefix; above: how many have this
// one. `larger` and `equal`: which.
__device__ inline int compare_four(const uint32_t* keys, int i, int n, const Cut& cut, uint32_t& larger, uint32_t& equal) {
  larger = equal = 0;
  if (i >= n) return 0;
  const uint4 four = *reinterpret_cast<const uint4*>(keys + i);
  const uint32_t v[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const uint32_t key = v[e] >> cut.shift;
    if (i + e < n) {
      larger |= (key > cut.prefix ? 1u : 0u) << e;
      equal |= (key == cut.prefix ? 1u : 0u) << e;
    }
  }
  return __popc(larger) | __popc(equal) << 16;
}

// All keys with the prefix, in every block; the cut is a whole key then.
__device__ inline void rank_candidates(const uint32_t* keys, int n, int begin, int blocks, Selection& s, Cut& cut) {
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0 && blocks > 1) expect_bytes(s.gathered, static_cast<uint32_t>(cut.count) * sizeof(uint2));
  for_keys(keys, n, [&](int i, uint32_t key) {
    if (key >> cut.shift != cut.prefix) return;
    const int place = cut.same + atomicAdd(&s.listed, 1);
    const uint2 mine = {key, static_cast<uint32_t>(begin + i)};
    if (blocks == 1) s.candidates[place] = mine;
    for (int b = 0; b < blocks && blocks > 1; ++b) send(&s.candidates[place], mine, s.gathered, b);
  });
  if (blocks > 1) wait_arrivals(s.gathered);
  else __syncthreads();
  if (threadIdx.x < cut.count) {
    const uint2 mine = s.candidates[threadIdx.x];
    int before = 0;
    for (int i = 0; i < cut.count; ++i) {
      const uint2 other = s.candidates[i];
      before += other.x > mine.x || (other.x == mine.x && other.y < mine.y);
    }
    if (before == cut.wanted - 1) s.edge = mine.x;
  }
  __syncthreads();
  const uint32_t edge = s.edge;
  int larger = 0, above = 0, same = 0;
#pragma unroll
  for (int i = lane; i < kCandidates; i += 32) {
    const uint2 v = i < cut.count ? s.candidates[i] : uint2{0, ~0u};
    const bool mine_follows = v.y < static_cast<uint32_t>(begin);
    larger += v.x > edge && i < cut.count;
    above += v.x > edge && mine_follows;
    same += v.x == edge && mine_follows;
  }
  cut.prefix = edge;
  cut.shift = 0;
  cut.wanted -= __reduce_add_sync(~0u, larger);
  cut.above += __reduce_add_sync(~0u, above);
  cut.same = __reduce_add_sync(~0u, same);
}

// keys[n] in shared memory, of the entries from `begin` on, aligned to 16 bytes and readable up to a multiple of four; n
// may be 0. out[topk] of the row, which has more entries than that. Starts with the keys visible to all of the block.
__device__ inline void select_best(const uint32_t* keys, int n, int begin, int topk, int rank, int blocks, Selection& s,
                                   int32_t* out) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (blocks > 1) blocks_started();
  Cut cut;
  cut.wanted = topk;
  for (int digit = 0; digit < kDigits; ++digit) {
    cut.shift -= 8;
    int* const here = s.histogram[digit % 2];
    for_keys(keys, n, [&](int, uint32_t key) {
      if (digit == 0 || key >> (cut.shift + 8) == cut.prefix) atomicAdd(&here[key >> cut.shift & (kBins - 1)], 1);
    });
    __syncthreads();
    add_histograms(s, digit, rank, blocks);
    __syncthreads();
    find_bin(s, cut);
    if (cut.wanted == cut.count) break;  // all that share this prefix
    if (cut.count <= kCandidates) {
      rank_candidates(keys, n, begin, blocks, s, cut);
      break;
    }
  }
  // A warp takes neighbouring entries, a lane four at a time; how many are chosen before it says where its own go.
  const int per_step = static_cast<int>(blockDim.x) * 4, segment = (n + per_step - 1) / per_step * 128;
  const int first = warp * segment, end = min(first + segment, n);
  uint32_t larger, equal;
  int above = 0, same = 0;
  for (int base = first; base < end; base += 128) {
    const int found = compare_four(keys, base + lane * 4, end, cut, larger, equal);
    above += found & 0xffff;
    same += found >> 16;
  }
  above = __reduce_add_sync(~0u, above);
  same = __reduce_add_sync(~0u, same);
  if (lane == 0) s.warps[warp] = {above, same};
  __syncthreads();
  const int2 before_me = lane < warp ? s.warps[lane] : int2{0, 0};
  above = cut.above + __reduce_add_sync(~0u, before_me.x);
  same = cut.same + __reduce_add_sync(~0u, before_me.y);
  for (int base = first; base < end; base += 128) {
    const int mine = compare_four(keys, base + lane * 4, end, cut, larger, equal);
    int through = mine;
#pragma unroll
    for (int o = 1; o < 32; o *= 2) {
      const int other = __shfl_up_sync(~0u, through, o);
      if (lane >= o) through += other;
    }
    int larger_before = above + ((through - mine) & 0xffff), same_before = same + ((through - mine) >> 16);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool is_larger = larger >> e & 1, is_equal = equal >> e & 1;
      if (is_larger || (is_equal && same_before < cut.wanted)) {
        out[larger_before + min(same_before, cut.wanted)] = begin + base + lane * 4 + e;
      }
      larger_before += is_larger;
      same_before += is_equal;
    }
    through = __shfl_sync(~0u, through, 31);
    above += through & 0xffff;
    same += through >> 16;
  }
}

// What the blocks of a row with few keys send each other.
inline constexpr int kRankedMost = 2048;                   // keys of a row
inline constexpr int64_t kRankedPairs = int64_t{1} << 18;  // and comparisons of a block; digits are faster for more
inline constexpr int kComparedKeys = 64;                   // at a time, by eight lanes with one key
struct Ranking {
  Arrivals gathered, counted;
  int warps[kMostSelectWarps];             // chosen keys of each
  uint2 blocks[kMaxCluster];               // and of each block, in x
  alignas(16) uint32_t keys[kRankedMost];  // of the row
};

// `per`: keys of every block but the last ones, a multiple of four.
__device__ inline bool is_ranked(int visible, int per) {
  return visible <= kRankedMost && static_cast<int64_t>(visible) * per <= kRankedPairs;
}

// First thing of a block of kMostSelectWarps warps in a cluster.
__device__ inline void begin_ranking(Ranking& s, int visible, int blocks) {
  const int sent = (visible + 3) / 4 * 4, compared = (visible + kComparedKeys - 1) / kComparedKeys * kComparedKeys;
  if (threadIdx.x == 0) {
    expect_arrivals(s.gathered, static_cast<uint32_t>(sent) * 4);
    expect_arrivals(s.counted, static_cast<uint32_t>(blocks) * sizeof(uint2));
  }
  if (threadIdx.x < compared - sent) s.keys[sent + threadIdx.x] = 0;
  block_started();
}

// In two instructions.
__device__ inline void count_if_larger(int& count, uint32_t key, uint32_t than) {
  asm("{ .reg .pred p; setp.gt.u32 p, %1, %2; @p add.s32 %0, %0, 1; }" : "+r"(count) : "r"(key), "r"(than));
}

// As select_best(), with zeros behind the block's keys up to a multiple of four.
__device__ inline void select_ranked(const uint32_t* keys, int n, int begin, int per, int visible, int topk, int rank, int blocks,
                                     Ranking& s, int32_t* out) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  blocks_started();
  if (warp < blocks) {
#pragma unroll 1
    for (int i = lane * 4; i < n; i += 128) {
      send(reinterpret_cast<uint4*>(s.keys + begin + i), *reinterpret_cast<const uint4*>(keys + i), s.gathered, warp);
    }
  }
  wait_arrivals(s.gathered);
  // A warp takes neighbours, four at a time; eight lanes compare one with all.
  const int per_warp = (per + 4 * kMostSelectWarps - 1) / (4 * kMostSelectWarps) * 4, first = warp * per_warp;
  const int end = min(first + per_warp, n), last = (visible + kComparedKeys - 1) / kComparedKeys * (kComparedKeys / 4);
  uint32_t chosen = 0;
#pragma unroll 1
  for (int i = first; i < end; i += 4) {
    const uint32_t* const four = s.keys + begin + i;
    const int own = (begin + i) >> 2;
    const uint32_t key = four[lane / 8];
    // Of equal keys those of lower indices are larger: of the four here, and of all before.
    int larger = lane % 8 < lane / 8 && four[lane % 8] == key;
    const uint4* other = reinterpret_cast<const uint4*>(s.keys) + lane % 8;
#pragma unroll 1
    for (int at = lane % 8 - own; at < last - own; at += kComparedKeys / 4) {  // below 0: before
#pragma unroll
      for (int g = 0; g < kComparedKeys / 4; g += 8) {
        const uint32_t than = key + static_cast<uint32_t>((at + g) >> 31);
        count_if_larger(larger, other[g].x, than);
        count_if_larger(larger, other[g].y, than);
        count_if_larger(larger, other[g].z, than);
        count_if_larger(larger, other[g].w, than);
      }
      other += kComparedKeys / 4;
    }
    for (int o = 1; o < 8; o *= 2) larger += __shfl_xor_sync(~0u, larger, o);
    if (larger < topk && i + lane / 8 < n) chosen |= 1u << (i - first + lane / 8);
  }
  chosen = __reduce_or_sync(~0u, chosen);
  if (lane == 0) s.warps[warp] = __popc(chosen);
  __syncthreads();
  const int count = lane < kMostSelectWarps ? s.warps[lane] : 0;
  const uint2 all = {static_cast<uint32_t>(__reduce_add_sync(~0u, count)), 0};
  if (lane == 0 && warp < blocks) send(&s.blocks[rank], all, s.counted, warp);
  int place = __reduce_add_sync(~0u, lane < warp ? count : 0);
  wait_arrivals(s.counted);
  place += __reduce_add_sync(~0u, lane < rank ? static_cast<int>(s.blocks[lane].x) : 0);
  if (chosen >> lane & 1u) out[place + __popc(chosen & ((1u << lane) - 1))] = begin + first + lane;
}

}  // namespace dsv4::cuda
