// WeightFormat: the logical formats a published weight can have. A format is one row of this table
// plus its codecs; physical layouts exist only behind Backend::pack.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/dtype.h"

namespace dsv4 {

enum class WeightFormat : uint8_t {
  kF32,
  kBf16,
  kFp8Tile128,  // E4M3, one UE8M0 per 128 x 128 tile
  kMxfp4,       // E2M1, one UE8M0 per row and 32 values of K
  kNvfp4,       // E2M1, one E4M3 per row and 16 values of K, times one FP32 per tensor
  kI32,         // lookup tables (hash routing), not a numeric weight
};

struct FormatInfo {
  WeightFormat format;
  std::string_view name;
  int bits;                // per element
  int block_rows;          // rows sharing one scale; 0 = no scales
  int block_cols;          // values of K sharing one scale
  DType scale_dtype;
  bool has_global_scale;
  bool quantised_input;  // a linear of this format quantises its input with act8
};

const FormatInfo& format_info(WeightFormat format);

// Bytes of the elements of one [rows, cols] matrix, and of its block scales.
int64_t weight_bytes(WeightFormat format, int64_t rows, int64_t cols);
int64_t scale_bytes(WeightFormat format, int64_t rows, int64_t cols);

// One value of a published matrix, dequantised. `weight`, `scale` as stored in the file; `global` is
// weight_scale_2 (1 where the format has none). Slow: for tests, tools and the reference backend.
float dequantise_at(WeightFormat format, const void* weight, const void* scale, float global,
                    int64_t rows, int64_t cols, int64_t row, int64_t col);

// A whole row into out[cols].
void dequantise_row(WeightFormat format, const void* weight, const void* scale, float global,
                    int64_t rows, int64_t cols, int64_t row, float* out);

}  // namespace dsv4
