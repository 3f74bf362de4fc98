// A key/value row in 8 bits: d - r E4M3 codes, the r RoPE dims as BF16, 8 bytes of UE8M0 for groups of 64 codes (those
// that no group has are 0). What kv8 has rounded fits without loss: a value is a code times a power of two, and the
// scale made of the rounded values is that power, or half of it where twice every code is a code too. So a row read
// back has the same bits. A group that holds a NaN is NaN as a whole, by its scale, 255: readers that widen codes by
// moving bits know no NaN code.
#pragma once

#include "formats/quantise.h"

namespace dsv4 {

inline constexpr int64_t kKvScaleBytes = 8;

// A quantised row of d values with r RoPE dims has room for all scales.
constexpr bool has_kv_row(int64_t d, int64_t r) { return d - r <= kKvScaleBytes * kKv8Group; }
constexpr int64_t kv_row_fp8_bytes(int64_t d, int64_t r) { return d - r + 2 * r + kKvScaleBytes; }

// row [d] as kv8 left it.
inline void encode_kv_row(const bf16* row, int64_t d, int64_t r, uint8_t* out) {
  const int64_t codes = d - r;
  uint8_t* scales = out + codes + 2 * r;
  memset(scales, 0, kKvScaleBytes);
  for (int64_t at = 0; at < codes; at += kKv8Group) {
    const int n = static_cast<int>(codes - at < kKv8Group ? codes - at : kKv8Group);
    uint8_t& scale = scales[at / kKv8Group];
    scale = act8_quantise(row + at, n, out + at);
    for (int64_t i = at; i < at + n; ++i) {
      if ((row[i].bits & 0x7fffu) > 0x7f80u) scale = kUe8m0Nan;
    }
  }
  memcpy(out + codes, row + codes, static_cast<size_t>(2 * r));
}

inline void decode_kv_row(const uint8_t* in, int64_t d, int64_t r, bf16* row) {
  const int64_t codes = d - r;
  const uint8_t* scales = in + codes + 2 * r;
  for (int64_t i = 0; i < codes; ++i) {
    row[i] = to_bf16(e4m3_to_float(in[i]) * ue8m0_to_float(scales[i / kKv8Group]));
  }
  memcpy(row + codes, in + codes, static_cast<size_t>(2 * r));
}

}  // namespace dsv4
