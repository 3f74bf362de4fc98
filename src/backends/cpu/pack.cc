// Packing: published bytes -> tiles, in parallel, and the inverse.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>

#include "backends/cpu/core.h"
#include "base/str.h"

namespace dsv4::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// The published bytes of a matrix, as rows of codes and of scales.
struct Published {
  const uint8_t* values = nullptr;
  const uint8_t* scales = nullptr;
  int64_t row_bytes = 0;    // of values
  int64_t scale_row = 0;    // scale bytes per row of scales
  int64_t rows_per_scale = 1;
};

Published published(WeightFormat format, const void* values, const void* scales, int64_t cols) {
  const FormatInfo& info = format_info(format);
  Published p{.values = static_cast<const uint8_t*>(values),
              .scales = static_cast<const uint8_t*>(scales),
              .row_bytes = ceil_div(cols * info.bits, 8)};
  if (info.block_rows) {
    p.scale_row = ceil_div(cols, info.block_cols);
    p.rows_per_scale = info.block_rows;
  }
  return p;
}

// The four bytes of a row in a line: as published -> as the tile has them (tiles.h), and back.
uint32_t halves_swapped(uint32_t pair) { return pair << 16 | pair >> 16; }

// Nibbles 0 1 2 3 4 5 6 7 from the lowest -> 1 3 5 7 0 2 4 6.
uint32_t nibbles_sorted(uint32_t w) {
  uint32_t even = w & 0x0f0f0f0f, odd = w >> 4 & 0x0f0f0f0f;
  even = (even | even >> 4) & 0x00ff00ff;
  odd = (odd | odd >> 4) & 0x00ff00ff;
  return ((even | even >> 8) & 0xffff) << 16 | ((odd | odd >> 8) & 0xffff);
}

uint32_t nibbles_published(uint32_t w) {
  uint32_t even = w >> 16, odd = w & 0xffff;
  even = (even | even << 8) & 0x00ff00ff;
  odd = (odd | odd << 8) & 0x00ff00ff;
  return ((even | even << 4) & 0x0f0f0f0f) | ((odd | odd << 4) & 0x0f0f0f0f) << 4;
}

// Codes 0 1 2 3 from the lowest byte -> 1 0 3 2.
uint32_t codes_swapped(uint32_t w) { return (w & 0x00ff00ff) << 8 | (w >> 8 & 0x00ff00ff); }

constexpr int64_t kWord = 4;  // bytes of a row in a line

// [32 rows][words of K] -> lines
template <class Change>
void interleave(WeightFormat format, const uint8_t* const* rows, const Change& change, uint8_t* out) {
  for (int64_t line = 0; line < kTileK / line_values(format); ++line) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      uint32_t word;
      memcpy(&word, rows[r] + line * kWord, sizeof word);
      word = change(word);
      uint8_t* to = out + line_at(format, line, r / kHalfRows);
      for (int64_t upper = 0; upper < 2; ++upper) {
        const uint16_t half = static_cast<uint16_t>(word >> upper * 16);
        memcpy(to + word_half_at(format, r % kHalfRows, upper), &half, sizeof half);
      }
    }
  }
}

bool is_nan_code(uint8_t e4m3) { return (e4m3 & 0x7f) == 0x7f; }

// Whether one of n E4M3 codes, a multiple of 8, is a NaN.
bool any_nan_code(const uint8_t* codes, int64_t n) {
  uint64_t found = 0;
  for (int64_t i = 0; i < n; i += 8) {
    uint64_t eight;
    memcpy(&eight, codes + i, 8);
    found |= ((eight & 0x7f7f7f7f7f7f7f7f) + 0x0101010101010101) & 0x8080808080808080;
  }
  return found != 0;
}

// Products of act8 inputs and codes are multiples of 2^-40 (2^-9 of either code, 2^-22 of the smallest
// scale of act8): times at least 2^-86 they are normal numbers. At the other end 448 * 2^100 is far from
// the largest.
bool folds(uint8_t ue8m0) { return ue8m0 >= 127 - 86 && ue8m0 <= 127 + 100; }

struct PackedBlock {
  int64_t nan_row = -1;  // of the matrix, in which a code is NaN: the kernels do not know such codes
  bool scales_fold = true;
};

PackedBlock pack_block(const Tiles& t, const Published& source, int64_t first_row, int64_t tile, int64_t b,
                       uint8_t* block) {
  PackedBlock found;
  static constexpr uint8_t kZeros[kTileK * 4] = {};
  const int64_t values = block_value_bytes(t.format);
  const int64_t k_bytes = values / kTileRows;  // of one row in this block
  const int64_t here = std::min(k_bytes, source.row_bytes - b * k_bytes);
  uint8_t ragged[kTileRows][kTileK * 4];
  const uint8_t* rows[kTileRows];
  for (int64_t r = 0; r < kTileRows; ++r) {
    const int64_t row = tile * kTileRows + r;
    if (row >= t.rows) {
      rows[r] = kZeros;
      continue;
    }
    rows[r] = source.values + (first_row + row) * source.row_bytes + b * k_bytes;
    if (here < k_bytes) {
      memset(ragged[r], 0, sizeof ragged[r]);
      memcpy(ragged[r], rows[r], static_cast<size_t>(here));
      rows[r] = ragged[r];
    }
    if (t.format == WeightFormat::kFp8Tile128 && any_nan_code(rows[r], k_bytes)) found.nan_row = row;
  }
  uint8_t* out = values_of(t.format, block);
  switch (t.format) {
    case WeightFormat::kMxfp4:
    case WeightFormat::kNvfp4: interleave(t.format, rows, nibbles_sorted, out); break;
    case WeightFormat::kFp8Tile128: interleave(t.format, rows, codes_swapped, out); break;
    case WeightFormat::kBf16: interleave(t.format, rows, halves_swapped, out); break;
    case WeightFormat::kF32:
    case WeightFormat::kI32: interleave(t.format, rows, std::identity(), out); break;
  }
  const int64_t scales = block_scales(t.format);
  uint8_t* scale_out = scales_of(t.format, block);
  const bool powers = t.format != WeightFormat::kNvfp4;
  for (int64_t r = 0; r < kTileRows; ++r) {
    const int64_t row = tile * kTileRows + r;
    // Past the last row of this matrix; the next group's rows may follow in the source.
    const uint8_t* from = nullptr;
    if (row < t.rows) from = source.scales + (first_row + row) / source.rows_per_scale * source.scale_row;
    for (int64_t s = 0; s < scales; ++s) {
      const int64_t at = b * scales + s;
      const uint8_t scale = from && at < source.scale_row ? from[at] : powers ? 127 : 0;
      if (!powers && is_nan_code(scale)) found.nan_row = row;
      found.scales_fold &= powers && folds(scale);
      scale_out[scale_at(t.format, s, r)] = scale;
    }
  }
  return found;
}

void unpack_tile(const Tiles& t, int64_t first_row, int64_t tile, uint8_t* values, uint8_t* scales) {
  const Published layout = published(t.format, values, scales, t.cols);
  const int64_t value_bytes = block_value_bytes(t.format), k_bytes = value_bytes / kTileRows;
  const FormatInfo& info = format_info(t.format);
  for (int64_t b = 0; b < t.blocks(); ++b) {
    const uint8_t* block = t.data + tile * t.tile_bytes() + b * block_bytes(t.format);
    for (int64_t r = 0; r < kTileRows && tile * kTileRows + r < t.rows; ++r) {
      const int64_t row = first_row + tile * kTileRows + r;
      uint8_t* to = values + row * layout.row_bytes + b * k_bytes;
      const int64_t here = std::min(k_bytes, layout.row_bytes - b * k_bytes);
      for (int64_t i = 0; i < here; i += kWord) {
        const uint8_t* line = values_of(t.format, block) + line_at(t.format, i / kWord, r / kHalfRows);
        uint32_t word = 0;
        for (int64_t upper = 0; upper < 2; ++upper) {
          uint16_t half;
          memcpy(&half, line + word_half_at(t.format, r % kHalfRows, upper), sizeof half);
          word |= static_cast<uint32_t>(half) << upper * 16;
        }
        if (info.bits == 4) word = nibbles_published(word);
        if (t.format == WeightFormat::kFp8Tile128) word = codes_swapped(word);
        if (t.format == WeightFormat::kBf16) word = halves_swapped(word);
        memcpy(to + i, &word, static_cast<size_t>(std::min(kWord, here - i)));
      }
      const int64_t count = scales ? block_scales(t.format) : 0;
      for (int64_t s = 0; s < count && b * count + s < layout.scale_row; ++s) {
        scales[row / layout.rows_per_scale * layout.scale_row + b * count + s] =
            scales_of(t.format, block)[scale_at(t.format, s, r)];
      }
    }
  }
}

// The matrices of a request, without memory: one per source, or per group of a source.
std::vector<Tiles> plan(const PackRequest& request) {
  std::vector<Tiles> matrices;
  const int64_t groups = request.role == WeightRole::kGrouped ? request.groups : 1;
  for (const WeightSource& source : request.sources) {
    for (int64_t g = 0; g < groups; ++g) {
      matrices.push_back({.format = source.format,
                          .rows = request.rows / groups,
                          .cols = request.cols,
                          .global_scale = source.global_scale});
    }
  }
  return matrices;
}

bool row_major(WeightRole role) { return role == WeightRole::kVector || role == WeightRole::kEmbed; }

constexpr int64_t kAlign = 64;
int64_t padded(int64_t bytes) { return ceil_div(bytes, kAlign) * kAlign; }

// Vectors and embeddings stay row-major; I64 tables become I32.
Result<PackedWeight> pack_rows(ThreadPool& pool, const PackRequest& request, WeightView view) {
  const WeightSource& source = request.sources.front();
  auto packed = std::make_unique<Weight>();
  packed->role = request.role;
  const size_t bytes = packed_bytes(request);
  DSV4_ASSIGN(packed->owned, allocate_pages(bytes));
  char* to = packed->owned.as<char>();
  const char* from = static_cast<const char*>(source.weight.data);
  const bool narrow = source.weight.dtype == DType::kI64;
  const int64_t elements = request.rows * request.cols;
  pool.run([&](int worker) {
    const IndexRange range = split_range(narrow ? elements : static_cast<int64_t>(bytes), pool.threads(), worker);
    if (!narrow) {
      if (range.end > range.begin) memcpy(to + range.begin, from + range.begin, static_cast<size_t>(range.end - range.begin));
      return;
    }
    for (int64_t i = range.begin; i < range.end; ++i) {
      int64_t value;
      memcpy(&value, from + i * 8, 8);
      const int32_t narrowed = static_cast<int32_t>(value);
      memcpy(to + i * 4, &narrowed, 4);
    }
  });
  packed->matrices.push_back({.format = source.format, .data = packed->owned.as<uint8_t>(),
                              .rows = request.rows, .cols = request.cols});
  if (request.role == WeightRole::kVector) view.plain = to;
  return PackedWeight(std::move(packed), view, bytes);
}

}  // namespace

Result<Buffer> allocate_pages(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  // A mapping starts at any page; huge pages need it at a multiple of their size.
  const bool huge = bytes >= kHugePage;
  const size_t size = (std::max<size_t>(bytes, 1) + page - 1) / page * page;
  const size_t reserve = huge ? size + kHugePage : size;
  void* map = mmap(nullptr, reserve, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) {
    return Status(Code::kResourceExhausted,
                  cat("cannot allocate ", bytes, " bytes of memory; use a smaller context, batch or model"));
  }
  char* begin = static_cast<char*>(map);
  if (huge) {
    const size_t into = reinterpret_cast<uintptr_t>(begin) % kHugePage;
    const size_t skip = into ? kHugePage - into : 0;
    if (skip) munmap(begin, skip);
    if (kHugePage - skip) munmap(begin + skip + size, kHugePage - skip);
    begin += skip;
    madvise(begin, size, MADV_HUGEPAGE);
  }
  return Buffer(begin, bytes, MemoryKind::kHost, [](void* data, size_t n) {
    const size_t p = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    munmap(data, (std::max<size_t>(n, 1) + p - 1) / p * p);
  });
}

size_t packed_bytes(const PackRequest& request) {
  if (row_major(request.role)) {
    return static_cast<size_t>(weight_bytes(request.sources.front().format, request.rows, request.cols));
  }
  int64_t bytes = 0;
  for (const Tiles& t : plan(request)) bytes += padded(t.bytes());
  return static_cast<size_t>(bytes);
}

Result<PackedWeight> pack(ThreadPool& pool, const PackRequest& request) {
  WeightView view{.count = static_cast<int64_t>(request.sources.size()),
                  .rows = request.rows,
                  .cols = request.cols,
                  .format = request.sources.front().format};
  if (row_major(request.role)) return pack_rows(pool, request, view);

  auto packed = std::make_unique<Weight>();
  packed->role = request.role;
  packed->groups = request.role == WeightRole::kGrouped ? request.groups : 1;
  packed->matrices = plan(request);
  const size_t bytes = packed_bytes(request);
  DSV4_ASSIGN(packed->owned, allocate_pages(bytes));
  uint8_t* at = packed->owned.as<uint8_t>();
  for (Tiles& t : packed->matrices) {
    t.data = at;
    at += padded(t.bytes());
  }
  // Each worker packs the tiles that it will multiply with.
  std::atomic<int64_t> nan_at{-1};  // matrix and row, one of those that have such a code
  std::atomic<bool> scales_fold{true};
  pool.run([&](int worker) {
    for (size_t i = 0; i < packed->matrices.size(); ++i) {
      const Tiles& t = packed->matrices[i];
      const WeightSource& source = request.sources[i / static_cast<size_t>(packed->groups)];
      const int64_t first_row = static_cast<int64_t>(i) % packed->groups * t.rows;
      const Published from = published(t.format, source.weight.data, source.scale.data, t.cols);
      const IndexRange range = split_range(t.tiles(), pool.threads(), worker);
      for (int64_t tile = range.begin; tile < range.end; ++tile) {
        for (int64_t b = 0; b < t.blocks(); ++b) {
          const PackedBlock found = pack_block(t, from, first_row, tile, b,
                                               t.data + tile * t.tile_bytes() + b * block_bytes(t.format));
          if (found.nan_row >= 0) {
            nan_at.store(static_cast<int64_t>(i) * t.rows + found.nan_row, std::memory_order_relaxed);
          }
          if (!found.scales_fold) scales_fold.store(false, std::memory_order_relaxed);
        }
      }
    }
  });
  if (const int64_t nan = nan_at.load(); nan >= 0) {
    return Status(Code::kCorrupt, cat("weight: expected numbers, found a NaN code of E4M3 in row ", nan % request.rows,
                                       " of matrix ", nan / request.rows,
                                       "; the file is damaged or its conversion failed: fetch or convert it again"));
  }
  for (Tiles& t : packed->matrices) t.scales_fold = scales_fold.load();
  return PackedWeight(std::move(packed), view, bytes);
}

Status unpack(const PackedWeight& packed, int64_t index, void* weight_out, void* scale_out) {
  const Weight& w = weight(packed.view());
  if (index < 0 || index >= packed.view().count) {
    return Status(Code::kInvalidArgument, cat("unpack: expected a source in 0..", packed.view().count - 1,
                                              ", found ", index));
  }
  if (row_major(w.role)) {
    memcpy(weight_out, w.owned.data(), w.owned.bytes());
    return {};
  }
  for (int64_t g = 0; g < w.groups; ++g) {
    const Tiles& t = w.matrices[static_cast<size_t>(index * w.groups + g)];
    for (int64_t tile = 0; tile < t.tiles(); ++tile) {
      unpack_tile(t, g * t.rows, tile, static_cast<uint8_t*>(weight_out), static_cast<uint8_t*>(scale_out));
    }
  }
  return {};
}

}  // namespace dsv4::cpu
