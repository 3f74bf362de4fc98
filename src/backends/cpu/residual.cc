// Residual streams: embedding.
#include <cstring>

#include "backends/cpu/core.h"
#include "backends/cpu/ops.h"
#include "base/str.h"

namespace dsv4::cpu {

Status embed(OpContext& ctx, const EmbedArgs& a) {
  const bf16* table = reinterpret_cast<const bf16*>(tiles(a.table).data);
  if (tiles(a.table).format != WeightFormat::kBf16) {
    return Status(Code::kUnsupported, "embed: expected a BF16 table");
  }
  (void)ctx;
  for (int64_t t = 0; t < a.T; ++t) {
    if (a.tokens[t] < 0 || a.tokens[t] >= a.table.rows) {
      return Status(Code::kInvalidArgument, cat("embed: expected token ids in 0..", a.table.rows - 1, ", found ",
                                                a.tokens[t]));
    }
    for (int64_t j = 0; j < a.hc; ++j) {
      memcpy(a.streams + (t * a.hc + j) * a.D, table + a.tokens[t] * a.D, static_cast<size_t>(a.D) * sizeof(bf16));
    }
  }
  return {};
}

}  // namespace dsv4::cpu
