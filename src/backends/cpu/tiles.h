// Physical layout of a packed weight: tiles of 16 rows, cut along K into blocks of 128 values. A vector
// lane is a row of the weight, so one sum per lane needs no reduction across lanes and the order of
// summation does not depend on how many lanes a vector has.
//
//   block of     values                                                   then, per 16 rows
//   MXFP4        [16] x [16 rows] u32: 8 nibbles of K (below)             [4] x [16 rows] UE8M0
//   NVFP4        same                                                     [8] x [16 rows] E4M3
//   FP8          [64] x [16 rows] u16: 2 codes of K, low first            [16 rows] UE8M0
//   BF16         [64] x [16 rows] u32: 2 values of K, high first
//   F32          [128] x [16 rows]
//
// Nibbles: values 0 2 4 6 lie in the high half of the word, 1 3 5 7 in the low half, both from the lowest
// nibble up, so that a shift by 4j brings values 2j and 2j+1 to the bottom of the two halves.
// Rows and K are padded with zeros up to whole tiles and blocks. A FP8 scale is kept per row because
// the groups of a grouped linear need not begin at a multiple of 128 rows.
#pragma once

#include <cstdint>

#include "formats/weight_format.h"

namespace dsv4::cpu {

inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileK = 128;
inline constexpr int64_t kMaxGroups = 8;

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

// One matrix [rows, cols] in this layout.
struct Tiles {
  WeightFormat format = WeightFormat::kBf16;
  uint8_t* data = nullptr;  // [tiles][blocks][block_bytes]
  int64_t rows = 0, cols = 0;
  float global_scale = 1.0f;  // NVFP4

  int64_t tiles() const { return ceil_div(rows, kTileRows); }
  int64_t blocks() const { return ceil_div(cols, kTileK); }
  int64_t padded_cols() const { return blocks() * kTileK; }
  int64_t tile_bytes() const { return blocks() * block_bytes(format); }
  int64_t bytes() const { return tiles() * tile_bytes(); }
};

}  // namespace dsv4::cpu
