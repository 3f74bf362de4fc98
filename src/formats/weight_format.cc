#include "formats/weight_format.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "formats/e2m1.h"
#include "formats/e4m3.h"
#include "formats/ue8m0.h"

namespace dsv4 {
namespace {

constexpr std::array<FormatInfo, 6> kFormats = {{
    {WeightFormat::kF32, "F32", 32, 0, 0, DType::kF32, false, false},
    {WeightFormat::kBf16, "BF16", 16, 0, 0, DType::kF32, false, false},
    {WeightFormat::kFp8Tile128, "FP8_E4M3_128x128", 8, 128, 128, DType::kE8M0, false, true},
    {WeightFormat::kMxfp4, "FP4_E2M1_UE8M0_32", 4, 1, 32, DType::kE8M0, false, true},
    {WeightFormat::kNvfp4, "FP4_E2M1_E4M3_16", 4, 1, 16, DType::kE4M3, true, true},
    {WeightFormat::kI32, "I32", 32, 0, 0, DType::kF32, false, false},
}};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Unaligned loads: published tensors are aligned to their element size at most.
template <class T>
T load(const void* base, int64_t index) {
  T value;
  memcpy(&value, static_cast<const char*>(base) + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

}  // namespace

const FormatInfo& format_info(WeightFormat format) { return kFormats[static_cast<size_t>(format)]; }

int64_t weight_bytes(WeightFormat format, int64_t rows, int64_t cols) {
  return rows * ceil_div(cols * format_info(format).bits, 8);
}

int64_t scale_bytes(WeightFormat format, int64_t rows, int64_t cols) {
  const FormatInfo& info = format_info(format);
  if (info.block_rows == 0) return 0;
  return ceil_div(rows, info.block_rows) * ceil_div(cols, info.block_cols) *
         static_cast<int64_t>(dtype_size(info.scale_dtype));
}

float dequantise_at(WeightFormat format, const void* weight, const void* scale, float global,
                    int64_t rows, int64_t cols, int64_t row, int64_t col) {
  (void)rows;
  switch (format) {
    case WeightFormat::kF32: return load<float>(weight, row * cols + col);
    case WeightFormat::kBf16: return to_float(load<bf16>(weight, row * cols + col));
    case WeightFormat::kI32: return static_cast<float>(load<int32_t>(weight, row * cols + col));
    case WeightFormat::kFp8Tile128: {
      const float s = ue8m0_to_float(load<uint8_t>(scale, (row / 128) * ceil_div(cols, 128) + col / 128));
      return e4m3_to_float(load<uint8_t>(weight, row * cols + col)) * s;
    }
    case WeightFormat::kMxfp4:
    case WeightFormat::kNvfp4: {
      const uint8_t byte = load<uint8_t>(weight, row * (cols / 2) + col / 2);
      const float v = e2m1_to_float(col % 2 ? e2m1_high(byte) : e2m1_low(byte));
      if (format == WeightFormat::kMxfp4) {
        return v * ue8m0_to_float(load<uint8_t>(scale, row * ceil_div(cols, 32) + col / 32));
      }
      return v * e4m3_to_float(load<uint8_t>(scale, row * ceil_div(cols, 16) + col / 16)) * global;
    }
  }
  return 0.0f;
}

void dequantise_row(WeightFormat format, const void* weight, const void* scale, float global,
                    int64_t rows, int64_t cols, int64_t row, float* out) {
  const FormatInfo& info = format_info(format);
  if (info.block_rows == 0) {
    for (int64_t col = 0; col < cols; ++col) {
      out[col] = dequantise_at(format, weight, scale, global, rows, cols, row, col);
    }
    return;
  }
  const int64_t blocks = ceil_div(cols, info.block_cols);
  for (int64_t block = 0; block < blocks; ++block) {
    const uint8_t code = load<uint8_t>(scale, row / info.block_rows * blocks + block);
    const float s = info.scale_dtype == DType::kE8M0 ? ue8m0_to_float(code) : e4m3_to_float(code);
    const int64_t begin = block * info.block_cols;
    const int64_t end = std::min(cols, begin + info.block_cols);
    if (info.bits == 8) {
      const uint8_t* codes = static_cast<const uint8_t*>(weight) + row * cols;
      for (int64_t col = begin; col < end; ++col) out[col] = e4m3_to_float(codes[col]) * s;
    } else {
      const uint8_t* pairs = static_cast<const uint8_t*>(weight) + row * (cols / 2);
      for (int64_t col = begin; col < end; col += 2) {
        out[col] = e2m1_to_float(e2m1_low(pairs[col / 2])) * s * global;
        out[col + 1] = e2m1_to_float(e2m1_high(pairs[col / 2])) * s * global;
      }
    }
  }
}

}  // namespace dsv4
