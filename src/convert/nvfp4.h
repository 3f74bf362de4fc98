// MXFP4 -> NVFP4: the routed experts of the main layers in the ModelOpt layout, everything else byte
// for byte. The E2M1 codes stay; 2^k of a block of 32 becomes, for each of its two blocks of 16,
// weight_scale * weight_scale_2 with weight_scale_2 = 2^(k_max - 8) shared by w1 and w3.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/log.h"
#include "dsv4/status.h"

namespace dsv4 {

// Exponent m of weight_scale_2 = 2^m, from the largest scale byte of w1 and w3 (or of w2).
int nvfp4_global_exponent(uint8_t max_scale_byte);

// One block of 32 codes (16 bytes) with scale byte b: the E4M3 scale of its two halves, beside
// weight_scale_2 = 2^m. Where 2^(b - 127 - m) is below E4M3's range the codes are rounded for the
// smallest scale, in place; false if that changed a value.
bool cast_block_to_nvfp4(uint8_t scale_byte, int m, uint8_t codes[16], uint8_t& scale);

struct Nvfp4Report {
  int64_t cast_tensors = 0;     // expert matrices
  int64_t blocks = 0;           // of 32 values
  int64_t rounded_blocks = 0;   // not exact
  int64_t kept_tensors = 0;     // copied as they were
  uint64_t payload_bytes = 0;
};

// Reads the checkpoint of folder `from` and writes folder `to`, shard by shard.
Result<Nvfp4Report> convert_to_nvfp4(const std::string& from, const std::string& to,
                                     const ProgressSink& progress = {});

// config.json and hf_quant_config.json of the result, in the later of the two published schemas.
Result<std::string> nvfp4_config_json(std::string_view config_json, std::string_view origin,
                                      int64_t layers);
std::string nvfp4_quant_config_json(int64_t layers);

}  // namespace dsv4
