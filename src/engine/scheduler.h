// Scheduler: who runs in the next step. Pure host decisions, functions of what they are given.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace dsv4 {

// Rows of each running sequence in the next step. `pending[i]` tokens of sequence i are not yet in
// its cache: one for a sequence that decodes, many for one whose prompt still runs. Decode rows
// come first, then prompts in order share `prefill_rows`.
std::vector<int64_t> plan_step(std::span<const int64_t> pending, int64_t prefill_rows,
                               int64_t max_rows);

}  // namespace dsv4
