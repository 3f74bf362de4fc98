// The physical layout of matrices: 16 x 128 blocks in the order in which the lanes of a warp need them
// as the A operand of mma.m16n8k16 (BF16) or m16n8k32 (E4M3), so that a warp streams a block with 16-byte loads and no shuffle.
//
// A matrix is [row tiles of 16][blocks of 128 along K][block bytes]; rows and K are padded with zeros.
// Lane = 4 g + t holds rows g and g + 8. Blocks of quantised formats give lane t of a group of 32
// along K the elements k = 16 s + 4 t + i (step s = 0, 1; i = 0..3), so that every step covers one
// group of 16; BF16 blocks the elements k = 8 t + 4 s + i, so that the input can be read as it is.
//   BF16  [4 groups of 32][2: row g, row g + 8][32 lanes][8 elements]            4096 bytes
//   E4M3  [4 groups of 32][32 lanes][row g: s0, s1; row g + 8: s0, s1]           2048 bytes
//         four codes of a step as (k0, k2, k1, k3): two masks make two pairs of BF16; E2M1 alike
//   E2M1  [2 groups of 64][32 lanes][group 0: row g, row g + 8; group 1: same]   1024 bytes
//         eight codes of a row in one word, s0 and s1 sharing bytes as e2m1_to_e4m3 wants them
// Scales: E4M3 matrices keep the published [rows/128, K/128]; E2M1 [tile][block][16 rows][4 or 8].
#pragma once

#include <cstdint>

#include "formats/weight_format.h"

namespace dsv4::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kBlockK = 128;

// One matrix as kernels see it, by value.
struct Matrix {
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;
  float global_scale = 1.0f;
  int32_t rows = 0, cols = 0;
  WeightFormat format = WeightFormat::kBf16;

  __host__ __device__ int32_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  __host__ __device__ int32_t blocks() const { return (cols + kBlockK - 1) / kBlockK; }
};

// A stack of matrices of one shape and format.
struct MatrixStack {
  Matrix first;
  int64_t code_stride = 0, scale_stride = 0;  // bytes from one matrix to the next
  const float* global_scales = nullptr;       // [count], device memory; nullptr = 1
};

__host__ __device__ constexpr int block_code_bytes(WeightFormat f) {
  return f == WeightFormat::kBf16 ? 4096 : f == WeightFormat::kFp8Tile128 ? 2048 : 1024;
}
// Bytes of scales per 16 x 128 block, for formats that pack them by block.
__host__ __device__ constexpr int block_scale_bytes(WeightFormat f) {
  return f == WeightFormat::kMxfp4 ? 64 : f == WeightFormat::kNvfp4 ? 128 : 0;
}

}  // namespace dsv4::cuda
