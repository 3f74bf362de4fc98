#include "bench/host_weight.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "formats/bf16.h"
#include "formats/e4m3.h"

namespace dsv4::bench {
namespace {

void fill_bits(std::vector<uint8_t>& bytes, size_t n, Rng& rng) {
  bytes.resize((n + 7) / 8 * 8);
  for (size_t i = 0; i < bytes.size(); i += 8) {
    const uint64_t word = rng.next();
    memcpy(bytes.data() + i, &word, 8);
  }
  bytes.resize(n);
}

TensorRef view(const std::vector<uint8_t>& bytes, DType dtype, const Shape& shape) {
  return {.data = bytes.data(), .dtype = dtype, .shape = shape};
}

DType element_dtype(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return DType::kF32;
    case WeightFormat::kBf16:
      return DType::kBF16;
    case WeightFormat::kFp8Tile128:
      return DType::kE4M3;
    case WeightFormat::kMxfp4:
      return DType::kI8;
    case WeightFormat::kNvfp4:
      return DType::kU8;
    case WeightFormat::kI32:
      return DType::kI64;
  }
  return DType::kF32;
}

}  // namespace

HostMatrix random_matrix(WeightFormat format, int64_t rows, int64_t cols, Rng& rng) {
  HostMatrix m;
  const float spread = 1.0f / std::sqrt(static_cast<float>(cols));
  const auto elements = static_cast<size_t>(weight_bytes(format, rows, cols));
  // Random codes of E4M3 have a spread of about 2^6.8, those of E2M1 of about 2^1.6.
  const int octave = static_cast<int>(std::lround(std::log2(spread)));
  switch (format) {
    case WeightFormat::kF32:
    case WeightFormat::kI32: {
      m.elements.resize(elements);
      for (size_t i = 0; i < elements; i += 4) {
        const float value = rng.normal() * spread;
        memcpy(m.elements.data() + i, &value, 4);
      }
      return m;
    }
    case WeightFormat::kBf16: {
      m.elements.resize(elements);
      for (size_t i = 0; i < elements; i += 2) {
        const bf16 value = to_bf16(rng.normal() * spread);
        memcpy(m.elements.data() + i, &value, 2);
      }
      return m;
    }
    case WeightFormat::kFp8Tile128: {
      fill_bits(m.elements, elements, rng);
      // 0x7f and 0xff are NaN; no published weight has one.
      for (uint8_t& code : m.elements)
        code = static_cast<uint8_t>((code & 0x7f) == 0x7f ? code ^ 1 : code);
      break;
    }
    case WeightFormat::kMxfp4:
    case WeightFormat::kNvfp4:
      fill_bits(m.elements, elements, rng);
      break;
  }
  m.scales.resize(static_cast<size_t>(scale_bytes(format, rows, cols)));
  if (format == WeightFormat::kNvfp4) {
    // Group scales of E4M3 between 0.5 and 15, the rest in the tensor's scale.
    for (uint8_t& s : m.scales) s = static_cast<uint8_t>(0x30 + rng.below(0x28));
    m.global_scale = spread / 12.0f;
    return m;
  }
  const int base = 127 + octave - (format == WeightFormat::kMxfp4 ? 2 : 7);
  for (uint8_t& s : m.scales) s = static_cast<uint8_t>(base - 1 + rng.below(3));
  return m;
}

PackRequest HostWeight::request() const {
  PackRequest request{.role = role, .rows = rows, .cols = cols, .groups = groups};
  const FormatInfo& info = format_info(format);
  const int64_t stored = info.bits == 4 ? cols / 2 : cols;
  for (const auto& m : matrices) {
    WeightSource source{.format = format, .global_scale = m->global_scale};
    source.weight = view(m->elements, element_dtype(format), {rows, stored});
    if (info.block_rows > 0) {
      source.scale = view(m->scales, info.scale_dtype,
                          {(rows + info.block_rows - 1) / info.block_rows,
                           (cols + info.block_cols - 1) / info.block_cols});
    }
    request.sources.push_back(source);
  }
  return request;
}

int64_t HostWeight::matrix_bytes() const {
  return weight_bytes(format, rows, cols) + scale_bytes(format, rows, cols);
}

HostWeight HostWeight::absolute() const {
  HostWeight w = *this;
  for (auto& m : w.matrices) {
    m = std::make_shared<HostMatrix>(*m);
    std::vector<uint8_t>& b = m->elements;
    const FormatInfo& info = format_info(format);
    const size_t step = std::max<size_t>(1, static_cast<size_t>(info.bits) / 8);
    const uint8_t mask = info.bits == 4 ? 0x77 : 0x7f;
    for (size_t i = step - 1; i < b.size(); i += step)
      b[i] &= mask;  // little-endian: the last byte
  }
  return w;
}

HostWeight random_weight(WeightRole role, WeightFormat format, int64_t rows, int64_t cols, Rng& rng,
                         int64_t count, int64_t distinct) {
  HostWeight w{.role = role, .format = format, .rows = rows, .cols = cols};
  for (int64_t i = 0; i < count; ++i) {
    if (i < distinct) {
      w.matrices.push_back(std::make_shared<HostMatrix>(random_matrix(format, rows, cols, rng)));
    } else {
      w.matrices.push_back(w.matrices[static_cast<size_t>(i % distinct)]);
    }
  }
  return w;
}

}  // namespace dsv4::bench
