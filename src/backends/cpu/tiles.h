// Physical layout of a packed weight: tiles of 32 rows, cut along K into blocks of 128 values. A vector
// lane is a row of the weight, so one sum per lane needs no reduction across lanes and the order of
// summation does not depend on how many lanes a vector has.
//
// A line of 64 bytes holds some values of K for 16 rows, so a tile has an upper and a lower half:
//   MXFP4, NVFP4  [16 rows] u32: 8 nibbles of K (below)
//   FP8           [4] of [2] of [4 rows] u16: 2 codes of K, the first in the high byte
//   BF16          [16 rows] u32: 2 values of K, high half first
//   F32           [16 rows]
// Lines lie as `gemv` reads them, which is with two groups of K side by side: pair of groups, line of
// the group, group of the pair, half of the tile. Then come the block's scales (`scales_of`), so that they need few
// instructions on their way to lanes of 32 bits:
//   MXFP4  [2 halves][16 rows] u32: 4 UE8M0, the first in the lowest byte
//   NVFP4  [4 pairs of groups][2 halves][16 rows] u16: 2 E4M3, the first in the high byte
//   FP8    [32 rows] UE8M0
//
// Nibbles: values 0 2 4 6 lie in the high half of the word, 1 3 5 7 in the low half, both from the lowest
// nibble up, so that a shift by 4j brings values 2j and 2j+1 to the bottom of the two halves. The codes of
// FP8 lie so that interleaving the bytes of two lines within 16 makes words of consecutive rows.
// Rows and K are padded with zeros up to whole tiles and blocks. A FP8 scale is kept per row because
// the groups of a grouped linear need not begin at a multiple of 128 rows.
#pragma once

#include <cstdint>

#include "formats/weight_format.h"

namespace dsv4::cpu {

inline constexpr int64_t kTileRows = 32, kHalfRows = 16;
inline constexpr int64_t kTileK = 128;
inline constexpr int64_t kLineBytes = 64;
inline constexpr int64_t kMaxGroups = 8;  // of a block

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t block_value_bytes(WeightFormat format) {
  switch (format) {
    case WeightFormat::kMxfp4:
    case WeightFormat::kNvfp4: return kTileRows * kTileK / 2;
    case WeightFormat::kFp8Tile128: return kTileRows * kTileK;
    case WeightFormat::kBf16: return kTileRows * kTileK * 2;
    case WeightFormat::kF32:
    case WeightFormat::kI32: return kTileRows * kTileK * 4;
  }
  return 0;
}

// Values of K in a line.
constexpr int64_t line_values(WeightFormat format) {
  return kLineBytes * kTileK * (kTileRows / kHalfRows) / block_value_bytes(format);
}

// Values of K that make one partial sum. Both FP4 formats share theirs, so that equal values give equal bits.
constexpr int64_t group_values(WeightFormat format) {
  return format == WeightFormat::kMxfp4 || format == WeightFormat::kNvfp4 ? 16 : 32;
}

// Where in a block the line lies that has values line * line_values ... of K.
constexpr int64_t line_at(WeightFormat format, int64_t line, int64_t half) {
  const int64_t steps = group_values(format) / line_values(format), group = line / steps;
  return ((group / 2 * steps + line % steps) * 4 + group % 2 * 2 + half) * kLineBytes;
}

// Where in a line the lower and upper 16 bits of a row's word of 32 lie.
constexpr int64_t word_half_at(WeightFormat format, int64_t row, int64_t upper) {
  return format == WeightFormat::kFp8Tile128 ? row / 4 * 16 + upper * 8 + row % 4 * 2 : row * 4 + upper * 2;
}

// Scale bytes per row of a block.
constexpr int64_t block_scales(WeightFormat format) {
  switch (format) {
    case WeightFormat::kMxfp4: return 4;
    case WeightFormat::kNvfp4: return 8;
    case WeightFormat::kFp8Tile128: return 1;
    default: return 0;
  }
}

constexpr int64_t block_bytes(WeightFormat format) {
  return block_value_bytes(format) + block_scales(format) * kTileRows;
}

// Values begin at a line of the cache, as matrices do: a vector that lies in two lines is slow to load where these are in
// different pages. A block of FP8 has half a line of scales, so every other one begins in the middle of a line; those have
// their scales first.
template <class Byte>
Byte* values_of(WeightFormat format, Byte* block) {
  if (block_bytes(format) % kLineBytes == 0) return block;
  return block + reinterpret_cast<uintptr_t>(block) % kLineBytes;
}
template <class Byte>
Byte* scales_of(WeightFormat format, Byte* block) {
  return values_of(format, block) == block ? block + block_value_bytes(format) : block;
}

// Where among a block's scales the row's number `index` lies.
constexpr int64_t scale_at(WeightFormat format, int64_t index, int64_t row) {
  if (format == WeightFormat::kMxfp4) return row * 4 + index;
  if (format == WeightFormat::kNvfp4) return (index / 2 * kTileRows + row) * 2 + 1 - index % 2;
  return row;
}

// One matrix [rows, cols] in this layout.
struct Tiles {
  WeightFormat format = WeightFormat::kBf16;
  uint8_t* data = nullptr;  // [tiles][blocks][block_bytes], at a multiple of kLineBytes
  int64_t rows = 0, cols = 0;
  float global_scale = 1.0f;  // NVFP4
  // Every scale is a power of two (UE8M0, or none) so far from the ends of the range that it may be
  // multiplied into a weight's BF16 and into any sum of its products without a rounding.
  bool scales_fold = false;

  int64_t tiles() const { return ceil_div(rows, kTileRows); }
  int64_t blocks() const { return ceil_div(cols, kTileK); }
  int64_t padded_cols() const { return blocks() * kTileK; }
  int64_t tile_bytes() const { return blocks() * block_bytes(format); }
  int64_t bytes() const { return tiles() * tile_bytes(); }
};

}  // namespace dsv4::cpu
