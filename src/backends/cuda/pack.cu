#include "backends/cuda/pack.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/str.h"

namespace dsv4::cuda {
namespace {

constexpr size_t kAlign = 256;
size_t padded(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// One thread per 8 elements along K of one row; kPack: published -> blocks, else the inverse. `rounded`: K in the order of
// rounded_place().
template <WeightFormat F, bool kPack>
__global__ void move_codes(uint8_t* published, uint8_t* blocks, int rows, int cols, int row_bytes, bool rounded) {
  constexpr int kPer = 8;
  const int per_row = (cols + kBlockK - 1) / kBlockK * kBlockK / kPer;
  const int tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int row = static_cast<int>(i / per_row), k0 = static_cast<int>(i % per_row) * kPer;
  if (row >= tiles * kTileRows) return;
  uint8_t* block = blocks + (static_cast<int64_t>(row / kTileRows) * (per_row * kPer / kBlockK) + k0 / kBlockK) *
                                block_bytes(F);
  const int r = row % kTileRows;
  for (int e = 0; e < kPer; ++e) {
    const int k = k0 + e, at_k = rounded ? rounded_place(k % kBlockK) : k % kBlockK;
    const bool inside = row < rows && k < cols;
    if (!kPack && !inside) continue;
    uint8_t* file = published + static_cast<int64_t>(row) * row_bytes;
    if constexpr (F == WeightFormat::kBf16) {
      uint16_t* at = reinterpret_cast<uint16_t*>(block + place_bf16(r, at_k).byte);
      uint16_t* in_file = reinterpret_cast<uint16_t*>(file) + k;
      if (kPack) *at = inside ? *in_file : uint16_t{0};
      else *in_file = *at;
    } else if constexpr (F == WeightFormat::kFp8Tile128) {
      // Here and below: the words were zero; threads of other elements add their own bits.
      const Place p = place_e4m3(r, at_k);
      unsigned* word = reinterpret_cast<unsigned*>(block + p.byte);
      if (kPack && inside) atomicOr(word, static_cast<unsigned>(place_code<8>(file[k], p.element)));
      if (!kPack) file[k] = static_cast<uint8_t>(code_at<8>(*word, p.element));
    } else {
      const Place p = place_e2m1(r, at_k);
      unsigned long long* words = reinterpret_cast<unsigned long long*>(block + p.byte);
      if (kPack) {
        const uint32_t code = inside ? (file[k / 2] >> (k % 2 * 4)) & 15u : 0u;
        atomicOr(words, static_cast<unsigned long long>(place_code<4>(code, p.element)));
      } else {
        const uint32_t code = code_at<4>(*words, p.element);
        // Both nibbles of a published byte are this thread's.
        if (k % 2 == 0) file[k / 2] = static_cast<uint8_t>((file[k / 2] & 0xf0) | code);
        else file[k / 2] = static_cast<uint8_t>((file[k / 2] & 0x0f) | (code << 4));
      }
    }
  }
}

// Scales of E2M1 formats: published [rows, per_row] <-> [16][n] in each block; padding is 0.
template <WeightFormat F, bool kPack>
__global__ void move_scales(uint8_t* published, uint8_t* blocks, int rows, int per_row) {
  constexpr int n = block_scale_bytes(F) / kTileRows;
  const int nblocks = (per_row + n - 1) / n;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t total = static_cast<int64_t>((rows + 15) / 16) * 16 * nblocks * n;
  if (i >= total) return;
  const int j = static_cast<int>(i % n), r = static_cast<int>(i / n % 16);
  const int64_t b = i / n / 16;
  const int64_t row = b / nblocks * 16 + r;
  const int64_t at = b % nblocks * n + j;
  const bool inside = row < rows && at < per_row;
  uint8_t& packed = blocks[b * block_bytes(F) + block_code_bytes(F) + r * n + j];
  if (kPack) packed = inside ? published[row * per_row + at] : uint8_t{0};
  else if (inside) published[row * per_row + at] = packed;
}

// Codes and scales of a matrix of E2M1.
template <WeightFormat F, bool kPack>
void move_e2m1(cudaStream_t s, unsigned grid, uint8_t* file, uint8_t* file_scales, uint8_t* blocks, int rows, int cols, int row_bytes, int scales_per_row) {
  move_codes<F, kPack><<<grid, 256, 0, s>>>(file, blocks, rows, cols, row_bytes, true);
  const int64_t scales = ceil_div<int64_t>(rows, kTileRows) * ceil_div<int64_t>(cols, kBlockK) * block_scale_bytes(F);
  move_scales<F, kPack><<<static_cast<unsigned>(ceil_div<int64_t>(scales, 256)), 256, 0, s>>>(file_scales, blocks, rows, scales_per_row);
}

struct Sizes {
  size_t code_bytes = 0, scale_bytes = 0;  // of one matrix, packed: blocks, scales of their own
  int64_t file_code_bytes = 0, file_scale_bytes = 0;
};

Sizes sizes_of(WeightFormat f, int64_t rows, int64_t cols) {
  Sizes s;
  const int64_t blocks = ceil_div<int64_t>(rows, kTileRows) * ceil_div<int64_t>(cols, kBlockK);
  s.code_bytes = padded(static_cast<size_t>(blocks * block_bytes(f)));
  s.file_code_bytes = weight_bytes(f, rows, cols);
  s.file_scale_bytes = scale_bytes(f, rows, cols);
  s.scale_bytes = f == WeightFormat::kFp8Tile128 ? padded(static_cast<size_t>(s.file_scale_bytes)) : 0;
  return s;
}

bool row_major(WeightRole role) { return role == WeightRole::kVector || role == WeightRole::kEmbed; }
// Whether a matrix of E4M3 is multiplied by tokens that act8 rounds; for E2M1 tokens always lie as these do.
bool meets_rounded(WeightRole role) { return role != WeightRole::kGrouped; }

template <bool kPack>
Status move(cudaStream_t s, WeightFormat f, uint8_t* file, uint8_t* file_scales, uint8_t* codes, uint8_t* scales,
            int64_t rows, int64_t cols, bool rounded, const Sizes& sizes) {
  const int64_t threads = ceil_div<int64_t>(rows, kTileRows) * kTileRows * ceil_div<int64_t>(cols, kBlockK) * (kBlockK / 8);
  const unsigned grid = static_cast<unsigned>(ceil_div<int64_t>(threads, 256));
  const int row_bytes = static_cast<int>(ceil_div<int64_t>(cols * format_info(f).bits, 8));
  const int r = static_cast<int>(rows), c = static_cast<int>(cols);
  switch (f) {
    case WeightFormat::kBf16:
      move_codes<WeightFormat::kBf16, kPack><<<grid, 256, 0, s>>>(file, codes, r, c, row_bytes, false);
      break;
    case WeightFormat::kFp8Tile128:
      if (kPack) DSV4_TRY(check(cudaMemsetAsync(codes, 0, sizes.code_bytes, s), "clearing of memory"));
      move_codes<WeightFormat::kFp8Tile128, kPack><<<grid, 256, 0, s>>>(file, codes, r, c, row_bytes, rounded);
      break;
    case WeightFormat::kMxfp4:
    case WeightFormat::kNvfp4: {
      if (kPack) DSV4_TRY(check(cudaMemsetAsync(codes, 0, sizes.code_bytes, s), "clearing of memory"));
      const auto move_all = f == WeightFormat::kMxfp4 ? move_e2m1<WeightFormat::kMxfp4, kPack> : move_e2m1<WeightFormat::kNvfp4, kPack>;
      move_all(s, grid, file, file_scales, codes, r, c, row_bytes, static_cast<int>(sizes.file_scale_bytes / rows));
      return check(cudaPeekAtLastError(), "move_e2m1");
    }
    default:
      return Status(Code::kUnsupported, cat("cuda: no matrix layout for ", format_info(f).name));
  }
  DSV4_TRY(check(cudaPeekAtLastError(), "move_codes"));
  if (sizes.file_scale_bytes == 0) return {};
  uint8_t* to = kPack ? scales : file_scales;
  const uint8_t* from = kPack ? file_scales : scales;
  return check(cudaMemcpyAsync(to, from, static_cast<size_t>(sizes.file_scale_bytes), cudaMemcpyDeviceToDevice, s),
               "copy of scales");
}

// Vectors and embeddings stay row-major; I64 tables become I32.
Result<PackedWeight> pack_rows(cudaStream_t s, const PackRequest& request, WeightView view) {
  const WeightSource& source = request.sources.front();
  auto packed = std::make_unique<Weight>();
  packed->role = request.role;
  packed->count = 1;
  const size_t bytes = packed_bytes(request);
  DSV4_ASSIGN(packed->owned, allocate_device(bytes, false));
  const void* from = source.weight.data;
  std::vector<int32_t> narrow;
  if (source.weight.dtype == DType::kI64) {
    narrow.resize(static_cast<size_t>(request.rows * request.cols));
    for (size_t i = 0; i < narrow.size(); ++i) {
      int64_t value;
      memcpy(&value, static_cast<const char*>(from) + i * 8, 8);
      narrow[i] = static_cast<int32_t>(value);
    }
    from = narrow.data();
  }
  DSV4_TRY(check(cudaMemcpyAsync(packed->owned.data(), from, bytes, cudaMemcpyHostToDevice, s), "upload of a weight"));
  DSV4_TRY(check(cudaStreamSynchronize(s), "upload of a weight"));
  packed->stack.first = {.codes = packed->owned.as<uint8_t>(), .rows = static_cast<int32_t>(request.rows),
                         .cols = static_cast<int32_t>(request.cols), .format = source.format};
  if (request.role == WeightRole::kVector) view.plain = packed->owned.data();
  return PackedWeight(std::move(packed), view, bytes);
}

}  // namespace

Result<Buffer> allocate_device(size_t bytes, bool zero) {
  void* p = nullptr;
  // Copies take 16 bytes at a time, also where a row of the cache in FP8 ends with 8.
  const size_t size = std::max<size_t>((bytes + 15) / 16 * 16, 1);
  if (cudaMalloc(&p, size) != cudaSuccess) {
    cudaGetLastError();
    return Status(Code::kResourceExhausted, cat("cannot allocate ", bytes, " bytes on the GPU; use a smaller context, "
                                                "batch or model, or a GPU with more memory"));
  }
  Buffer buffer(p, bytes, MemoryKind::kDevice, [](void* data, size_t) { cudaFree(data); });
  if (zero) {
    // On the default stream, which our own streams do not wait for.
    DSV4_TRY(check(cudaMemset(p, 0, size), "clearing of memory"));
    DSV4_TRY(check(cudaStreamSynchronize(nullptr), "clearing of memory"));
  }
  return Result<Buffer>(std::move(buffer));
}

size_t packed_bytes(const PackRequest& request) {
  const WeightFormat f = request.sources.front().format;
  if (row_major(request.role)) return static_cast<size_t>(weight_bytes(f, request.rows, request.cols));
  const Sizes s = sizes_of(f, request.rows, request.cols);
  const size_t global = format_info(f).has_global_scale ? padded(request.sources.size() * sizeof(float)) : 0;
  return request.sources.size() * (s.code_bytes + s.scale_bytes) + global;
}

Result<PackedWeight> pack(cudaStream_t s, const PackRequest& request) {
  const WeightFormat f = request.sources.front().format;
  WeightView view{.count = static_cast<int64_t>(request.sources.size()), .rows = request.rows, .cols = request.cols,
                  .format = f};
  if (row_major(request.role)) return pack_rows(s, request, view);
  if (request.rows > INT32_MAX || request.cols > INT32_MAX) {
    return Status(Code::kUnsupported, cat("cuda: a matrix of ", request.rows, " x ", request.cols, " is too large"));
  }
  if (request.role == WeightRole::kGrouped && request.rows / request.groups % kTileRows != 0) {
    return Status(Code::kUnsupported, cat("cuda: groups of ", request.rows / request.groups,
                                          " rows: expected a multiple of ", kTileRows));
  }
  for (const WeightSource& source : request.sources) {
    if (source.format != f) {
      return Status(Code::kUnsupported, cat("cuda: a stack of ", format_info(f).name, " and ",
                                            format_info(source.format).name, " matrices: expected one format"));
    }
  }
  const Sizes sizes = sizes_of(f, request.rows, request.cols);
  if (f == WeightFormat::kFp8Tile128 || f == WeightFormat::kMxfp4) {
    for (const WeightSource& source : request.sources) {
      const uint8_t* scales = static_cast<const uint8_t*>(source.scale.data);
      const int largest = *std::max_element(scales, scales + sizes.file_scale_bytes);
      if (largest > largest_scale(f)) {
        return Status(Code::kUnsupported, cat("cuda: a ", format_info(f).name, " scale of 2^", largest - 127, ": expected at most 2^",
                                              largest_scale(f) - 127, "; --device cpu takes any"));
      }
    }
  }
  auto packed = std::make_unique<Weight>();
  packed->role = request.role;
  packed->count = view.count;
  packed->rows_per_group = request.role == WeightRole::kGrouped ? request.rows / request.groups : request.rows;
  const size_t per_matrix = sizes.code_bytes + sizes.scale_bytes;
  DSV4_ASSIGN(packed->owned, allocate_device(per_matrix * request.sources.size(), false));
  size_t bytes = packed->owned.bytes();
  DSV4_ASSIGN(Buffer staging, allocate_device(padded(static_cast<size_t>(sizes.file_code_bytes)) +
                                                  static_cast<size_t>(sizes.file_scale_bytes), false));
  uint8_t* const file = staging.as<uint8_t>();
  uint8_t* const file_scales = file + padded(static_cast<size_t>(sizes.file_code_bytes));
  std::vector<float> globals;
  for (size_t i = 0; i < request.sources.size(); ++i) {
    const WeightSource& source = request.sources[i];
    uint8_t* codes = packed->owned.as<uint8_t>() + i * per_matrix;
    globals.push_back(source.global_scale);
    // A stack for timing may hold one matrix many times: it crosses the bus once.
    const auto same = std::find_if(request.sources.begin(), request.sources.begin() + static_cast<std::ptrdiff_t>(i),
                                   [&](const WeightSource& s2) { return s2.weight.data == source.weight.data; });
    if (const size_t before = static_cast<size_t>(same - request.sources.begin()); before < i) {
      DSV4_TRY(check(cudaMemcpyAsync(codes, packed->owned.as<uint8_t>() + before * per_matrix, per_matrix,
                                     cudaMemcpyDeviceToDevice, s), "copy of a weight"));
      continue;
    }
    DSV4_TRY(check(cudaMemcpyAsync(file, source.weight.data, static_cast<size_t>(sizes.file_code_bytes),
                                   cudaMemcpyHostToDevice, s), "upload of a weight"));
    if (sizes.file_scale_bytes) {
      DSV4_TRY(check(cudaMemcpyAsync(file_scales, source.scale.data, static_cast<size_t>(sizes.file_scale_bytes),
                                     cudaMemcpyHostToDevice, s), "upload of scales"));
    }
    DSV4_TRY(move<true>(s, f, file, file_scales, codes, codes + sizes.code_bytes, request.rows, request.cols,
                        meets_rounded(request.role), sizes));
  }
  MatrixStack& stack = packed->stack;
  stack.first = {.codes = packed->owned.as<uint8_t>(),
                 .scales = packed->owned.as<uint8_t>() + sizes.code_bytes,
                 .global_scale = request.sources.front().global_scale,
                 .rows = static_cast<int32_t>(request.rows),
                 .cols = static_cast<int32_t>(request.cols),
                 .format = f};
  stack.code_stride = stack.scale_stride = static_cast<int64_t>(per_matrix);
  if (format_info(f).has_global_scale) {
    DSV4_ASSIGN(packed->global_scales, allocate_device(padded(globals.size() * sizeof(float)), false));
    DSV4_TRY(check(cudaMemcpyAsync(packed->global_scales.data(), globals.data(), globals.size() * sizeof(float),
                                   cudaMemcpyHostToDevice, s), "upload of scales"));
    stack.global_scales = packed->global_scales.as<float>();
    bytes += packed->global_scales.bytes();
  }
  DSV4_TRY(check(cudaStreamSynchronize(s), "packing of a weight"));
  return PackedWeight(std::move(packed), view, bytes);
}

Status unpack(cudaStream_t s, const PackedWeight& packed, int64_t index, void* codes, void* scales) {
  const Weight& w = weight(packed.view());
  const Matrix& m = w.stack.first;
  const auto download = [&](void* to, const void* from, int64_t bytes) -> Status {
    DSV4_TRY(check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, s), "download"));
    return check(cudaStreamSynchronize(s), "download");
  };
  if (row_major(w.role)) return download(codes, m.codes, weight_bytes(m.format, m.rows, m.cols));
  const Sizes sizes = sizes_of(m.format, m.rows, m.cols);
  const size_t at = padded(static_cast<size_t>(sizes.file_code_bytes));
  DSV4_ASSIGN(Buffer staging, allocate_device(at + static_cast<size_t>(sizes.file_scale_bytes), true));
  uint8_t* const file = staging.as<uint8_t>();
  uint8_t* const from = const_cast<uint8_t*>(m.codes) + index * w.stack.code_stride;
  DSV4_TRY(move<false>(s, m.format, file, file + at, from, from + sizes.code_bytes, m.rows, m.cols, meets_rounded(w.role), sizes));
  DSV4_TRY(download(codes, file, sizes.file_code_bytes));
  if (scales && sizes.file_scale_bytes) return download(scales, file + at, sizes.file_scale_bytes);
  return {};
}

}  // namespace dsv4::cuda
