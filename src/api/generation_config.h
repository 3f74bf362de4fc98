// generation_config.json: how the model's makers sample.
#pragma once

#include <string>

#include "dsv4/status.h"
#include "dsv4/types.h"

namespace dsv4 {

// Defaults where DIR has none; an error where it has one that makes no sense.
Result<SamplingParams> load_generation_config(const std::string& dir, int64_t vocab_size);

}  // namespace dsv4
