// Weights of two tiles, or of one, on their way through shared memory: neighbouring blocks in bulk copies, for which one
// lane of a warp asks that does nothing else. What is under way costs neither registers nor instructions of those who
// multiply, and goes on while they wait for something else. (Several lanes of a warp would ask one after the other, and
// compute-sanitizer would take their copies for the first one's, which has not waited for the others' stages.)
#pragma once

#include "backends/cuda/device/barrier.cuh"
#include "backends/cuda/device/multiply.cuh"

namespace dsv4::cuda {

// A stage of the ring holds neighbouring blocks of each of two tiles: `Wide` of E2M1, or half as many of E4M3 and
// behind them their scales; of a single tile twice as many. A copy of any size takes some hundred cycles of the warp
// that asks for it, and 45 to 70 of its processor, so it should be no less than 2 KiB.
template <int Wide>
inline constexpr int kStageBytes = 2 * Wide * kBlockBytes<Product::kNvfp4>;
template <int Wide, int Tiles>
inline constexpr int kStageTileBytes = kStageBytes<Wide> / Tiles;
template <Product P, int Wide, int Tiles>
inline constexpr int kStageBlocks = (is_fp4(P) ? Wide : Wide / 2) * 2 / Tiles;

// Scales of E4M3 are copied with the 16 bytes around them.
__device__ inline int offset_in_16(const uint8_t* p) { return static_cast<int>(reinterpret_cast<uintptr_t>(p) & 15); }
inline constexpr int kScaleBytes = 32;
template <int Wide, int Tiles>
inline constexpr bool kE4m3Fits = kStageBlocks<Product::kFp8, Wide, Tiles> <= 16 &&
                                  kStageBlocks<Product::kFp8, Wide, Tiles> * kBlockBytes<Product::kFp8> + kScaleBytes <= kStageTileBytes<Wide, Tiles>;
static_assert(kE4m3Fits<4, 2> && kE4m3Fits<2, 2> && kE4m3Fits<4, 1>);

// What is left to ask for of one or two tiles.
struct StageSource {
  const uint8_t* codes[2];
  const uint8_t* scales[2];
  int left = 0;  // blocks

  template <int Tiles>
  __device__ void begin(const Tile (&tiles)[Tiles], int blocks) {
    for (int m = 0; m < Tiles; ++m) {
      codes[m] = tiles[m].codes;
      scales[m] = tiles[m].scales;
    }
    left = blocks;
  }
  // Asks for the next stage; `full` is told.
  template <Product P, int Wide, int Tiles = 2>
  __device__ void fill(char* stage, uint64_t* full) {
    const int n = min(left, kStageBlocks<P, Wide, Tiles>), bytes = n * kBlockBytes<P>;
    int scale_bytes[2] = {};
    if constexpr (P == Product::kFp8) {
      for (int m = 0; m < Tiles; ++m) scale_bytes[m] = (offset_in_16(scales[m]) + n + 15) / 16 * 16;
    }
    barrier_expect(full, static_cast<uint32_t>(Tiles * bytes + scale_bytes[0] + scale_bytes[1]));
#pragma unroll
    for (int m = 0; m < Tiles; ++m) {
      char* const to = stage + m * kStageTileBytes<Wide, Tiles>;
      copy_bulk_stream(to, codes[m], static_cast<uint32_t>(bytes), full);
      codes[m] += bytes;
      if constexpr (P == Product::kFp8) {
        copy_bulk_stream(to + kStageBlocks<P, Wide, Tiles> * kBlockBytes<P>, scales[m] - offset_in_16(scales[m]), static_cast<uint32_t>(scale_bytes[m]), full);
        scales[m] += n;
      }
    }
    left -= n;
  }
};

// total += the products of the blocks in a stage, `first` and those after it below `blocks`, that share `share` of
// kApart has, with NT * 8 tokens, whose operands for this lane begin at x[NT]. taken() comes when the stage has been read.
template <Product P, int kApart, int Wide, int Tiles, int NT, class Taken>
__device__ inline void multiply_stage(const Tile (&tiles)[Tiles], int share, int first, int blocks, const char* stage, const char* const (&x)[NT],
                                      float (&total)[Tiles][NT][4], const Taken& taken) {
  const int lane = threadIdx.x % 32;
  // Half a block of E4M3 at a time takes no more registers than a block of E2M1.
  constexpr int kPieces = is_fp4(P) ? 1 : 2, kVectors = code_vectors(P) / kPieces, kMine = kStageBlocks<P, Wide, Tiles> / kApart;
#pragma unroll
  for (int h = 0; h < (kMine > 0 ? kMine : 1); ++h) {
    // A stage of a single block is the one share's or the other's.
    const int in_stage = kMine > 0 ? h * kApart + share : 0, block = first + in_stage;
    const bool present = block < blocks && (kMine > 0 || first % kApart == share), last = h + 1 >= kMine;
    const char* const at = stage + in_stage * kBlockBytes<P>;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      Block<P> b[Tiles];
      if (present) {
#pragma unroll
        for (int m = 0; m < Tiles; ++m) {
          const char* const codes = at + m * kStageTileBytes<Wide, Tiles> + piece * (kVectors * 512);
          for (int i = 0; i < kVectors; ++i) b[m].codes[i] = *reinterpret_cast<const uint4*>(codes + i * 512 + lane * 16);
          load_scales<P>(codes + kCodeBytes<P>, b[m]);
          if constexpr (P == Product::kFp8) {
            const char* const scales = stage + m * kStageTileBytes<Wide, Tiles> + kStageBlocks<P, Wide, Tiles> * kBlockBytes<P>;
            b[m].scales[0] = static_cast<uint8_t>(scales[offset_in_16(tiles[m].scales + first) + in_stage]);
          }
        }
      }
      if (last && piece + 1 == kPieces) taken();
      if (present) multiply_groups<P, 4 / kPieces>(b, x, block * (kBlockK * 2) + piece * (kBlockK * 2 / kPieces), total);
    }
  }
}

}  // namespace dsv4::cuda
