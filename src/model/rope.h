// RoPE frequencies of one layer class (MODEL.md section 0), in FP32 as the published code has them.
#pragma once

#include <vector>

#include "model/layer_plan.h"

namespace dsv4 {

// f_i for i < r/2: theta^(-2i/r), stretched by YaRN where the plan has it.
std::vector<float> rope_frequencies(const RopePlan& plan, int64_t r);

}  // namespace dsv4
