#include "engine/scheduler.h"

#include <algorithm>

namespace dsv4 {

std::vector<int64_t> plan_step(std::span<const int64_t> pending, int64_t prefill_rows,
                               int64_t max_rows) {
  std::vector<int64_t> rows(pending.size(), 0);
  for (size_t i = 0; i < pending.size(); ++i) {
    if (pending[i] == 1 && max_rows > 0) {
      rows[i] = 1;
      --max_rows;
    }
  }
  for (size_t i = 0; i < pending.size(); ++i) {
    if (rows[i] != 0) continue;
    rows[i] = std::min({pending[i], prefill_rows, max_rows});
    prefill_rows -= rows[i];
    max_rows -= rows[i];
  }
  return rows;
}

}  // namespace dsv4
