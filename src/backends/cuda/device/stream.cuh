// Weights of two tiles on their way through shared memory: a warp's own ring, so that what is under way costs no
// registers and goes on while the warp waits for something else.
#pragma once

#include "backends/cuda/device/multiply.cuh"

namespace dsv4::cuda {

// A piece is 1 KiB of codes of one tile, 128 of K in E2M1 or 64 in E4M3, and behind them its scales. A stage of the
// ring holds `Span` pieces of each of two tiles, for the same K; the last stage of a tile may have fewer.
inline constexpr int kPieceCodes = 1024, kPieceBytes = kPieceCodes + 128;
template <int Span>
inline constexpr int kStageBytes = 2 * Span * kPieceBytes;

// The 16 aligned bytes around one, and its place among them.
__device__ inline const uint8_t* around(const uint8_t* p) { return reinterpret_cast<const uint8_t*>(reinterpret_cast<uintptr_t>(p) & ~uintptr_t{15}); }
__device__ inline int offset_in_16(const uint8_t* p) { return static_cast<int>(reinterpret_cast<uintptr_t>(p) & 15); }

template <Product P>
inline constexpr int kPiecesOfBlock = code_vectors(P) * 512 / kPieceCodes;
// Bytes of scales copied with a piece. E4M3 has one byte per block of K: the 16 bytes around it.
template <Product P>
inline constexpr int kPieceScales = P == Product::kNvfp4 ? 128 : P == Product::kMxfp4 ? 64 : 16;

// The pieces that a warp asks for next: of every kApart-th block of two tiles.
struct NextPieces {
  const uint8_t* codes[2];  // this lane's
  const uint8_t* scales;    // of the tile whose scales this lane copies
  int left;

  template <Product P>
  __device__ void begin(const Tile (&tiles)[2], int first, int blocks) {
    const int lane = threadIdx.x % 32;
    left = blocks * kPiecesOfBlock<P>;
    for (int m = 0; m < 2; ++m) codes[m] = tiles[m].codes + first * (kPiecesOfBlock<P> * kPieceCodes) + lane * 16;
    constexpr int kLanes = kPieceScales<P> / 16;
    scales = lane < kLanes ? tiles[0].scales : tiles[1].scales;
    if constexpr (P == Product::kFp8) scales += first;
    else scales += first * kPieceScales<P> + lane % kLanes * 16;
  }
  // Asks for a stage when no lane reads it any more. (Bulk copies of this size are slower: about 60 cycles of a
  // processor each.)
  template <Product P, int kApart, int Span>
  __device__ void ask(char* stage) {
    const int lane = threadIdx.x % 32;
    constexpr int kLanes = kPieceScales<P> / 16;
    char* const to = stage + lane * 16;
    char* const scales_to = stage + lane / kLanes * (Span * kPieceBytes) + kPieceCodes + lane % kLanes * 16;
#pragma unroll
    for (int h = 0; h < Span; ++h) {
      if (h > 0 && left == 0) break;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) copy_stream_16(to + (m * Span + h) * kPieceBytes + i * 512, codes[m] + i * 512);
      }
      if (lane < 2 * kLanes) copy_stream_16(scales_to + h * kPieceBytes, P == Product::kFp8 ? around(scales) : scales);
      --left;
      const bool next_block = kPiecesOfBlock<P> == 1 || left % 2 == 0;
      for (int m = 0; m < 2; ++m) codes[m] += kPieceCodes + (next_block ? (kApart - 1) * kPiecesOfBlock<P> * kPieceCodes : 0);
      if (next_block) scales += kApart * (P == Product::kFp8 ? 1 : kPieceScales<P>);
    }
  }
};

// This lane's part of the pieces of two tiles in a stage: piece h of the stage, of block `block`.
template <Product P, int Span>
__device__ inline void read_pieces(const Tile (&tiles)[2], int block, const char* stage, int h, Block<P> (&b)[2]) {
  const int lane = threadIdx.x % 32, g = lane / 4;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const char* piece = stage + (m * Span + h) * kPieceBytes;
    const char* scales = piece + kPieceCodes;
    for (int i = 0; i < 2; ++i) b[m].codes[i] = *reinterpret_cast<const uint4*>(piece + i * 512 + lane * 16);
    if constexpr (P == Product::kFp8) b[m].scales[0] = static_cast<uint8_t>(scales[offset_in_16(tiles[m].scales + block)]);
    if constexpr (P == Product::kMxfp4) {
      b[m].scales[0] = reinterpret_cast<const uint32_t*>(scales)[g];
      b[m].scales[1] = reinterpret_cast<const uint32_t*>(scales)[g + 8];
    }
    if constexpr (P == Product::kNvfp4) {
      const uint2 low = reinterpret_cast<const uint2*>(scales)[g], high = reinterpret_cast<const uint2*>(scales)[g + 8];
      b[m].scales[0] = low.x;
      b[m].scales[1] = low.y;
      b[m].scales[2] = high.x;
      b[m].scales[3] = high.y;
    }
  }
}

// total += the products of a stage with NT * 8 tokens, whose operands for this lane begin at x[NT]: of pieces first .. first + Span, below `count`, of every kApart-th block from `share` on.
// taken() comes when the stage has been read.
template <Product P, int kApart, int Span, int NT, class Taken>
__device__ inline void multiply_stage(const Tile (&tiles)[2], int share, int first, int count, const char* stage, const char* const (&x)[NT],
                                      float (&total)[2][NT][4], const Taken& taken) {
  const auto block_of = [&](int h) { return share + (first + h) / kPiecesOfBlock<P> * kApart; };
  const auto at = [&](int h) {
    return (block_of(h) * kPiecesOfBlock<P> + (first + h) % kPiecesOfBlock<P>) * (kBlockK * 2 / kPiecesOfBlock<P>);
  };
#pragma unroll
  for (int h = 0; h < Span - 1; ++h) {
    if (h > 0 && first + h >= count) break;
    Block<P> b[2];
    read_pieces<P, Span>(tiles, block_of(h), stage, h, b);
    multiply_groups<P, 4 / kPiecesOfBlock<P>>(b, x, at(h), total);
  }
  const bool last = Span == 1 || first + Span - 1 < count;
  Block<P> b[2];
  if (last) read_pieces<P, Span>(tiles, block_of(Span - 1), stage, Span - 1, b);
  taken();
  if (last) multiply_groups<P, 4 / kPiecesOfBlock<P>>(b, x, at(Span - 1), total);
}

}  // namespace dsv4::cuda
