// CacheSpec: what each layer stores per sequence (ring, tails) and per span of tokens (compressed
// entries, indexer keys). Written by the model from its layer plan; read by the cache, which
// allocates it, and by the memory plan, which adds it up.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace dsv4 {

// How one key/value row of head_dim values, already rounded by kv8, lies in memory. Both hold the same values: results
// do not depend on the format.
enum class KvFormat : uint8_t {
  kBf16,     // head_dim BF16 values
  kFp8Rope,  // formats/kv_row.h: E4M3 codes + BF16 RoPE dims + UE8M0 per 64, (d-r) + 2r + 8 bytes
};
constexpr std::string_view kv_format_name(KvFormat f) { return f == KvFormat::kFp8Rope ? "fp8" : "bf16"; }

struct CompressorSpec {
  int64_t ratio = 0;      // tokens per entry; 0 = this layer has no such compressor
  bool overlap = false;   // entries pool two windows (CSA)
  int64_t dim = 0;        // values of an entry
  int64_t columns() const { return overlap ? 2 * dim : dim; }
  // Rows that unfinished entries may still need, before any spare for rollback.
  int64_t window_rows() const { return overlap ? 2 * ratio : ratio; }
};

struct LayerCacheSpec {
  int64_t window = 0;    // sliding window W
  int64_t head_dim = 0;  // values of a key/value row
  int64_t rope_dim = 0;
  CompressorSpec entries;  // CSA or HCA main cache
  CompressorSpec keys;     // CSA indexer keys
};

struct CacheSpec {
  std::vector<LayerCacheSpec> layers;  // main layers, then the MTP blocks
  int64_t span = 256;                  // tokens per page id; a multiple of every ratio
};

}  // namespace dsv4
