// Any bytes as the image of a safetensors file, whole or cut after its header; and as a shard index.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "checkpoint/safetensors.h"
#include "checkpoint/shard_index.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace dsv4;
  for (const bool truncated : {false, true}) {
    SafetensorsOptions options;
    options.allow_header_only = truncated;
    const auto header = parse_safetensors_header("fuzz", {data, size}, size, options);
    if (!header.ok() || truncated) continue;
    // What was accepted lies inside the file.
    for (const TensorEntry& entry : header->entries) {
      if (entry.offset > size || entry.bytes > size - entry.offset) __builtin_trap();
    }
  }
  (void)parse_shard_index({reinterpret_cast<const char*>(data), size}, "dir", "index");
  return 0;
}
