// Sampling.
#include <cmath>

#include "backends/reference/kernels.h"
#include "ops/check.h"
#include "ops/sampling.h"

namespace dsv4::reference {

Status sample(OpContext& ctx, const SampleArgs& a) {
  DSV4_TRY(check_sample_vocab(a.V));
  Workspace::Scope scope(ctx.workspace);
  DSV4_ASSIGN(uint64_t* scratch, scope.take<uint64_t>(a.V));
  const auto n = static_cast<size_t>(a.V);
  for (int64_t r = 0; r < a.R; ++r) {
    a.tokens[r] = kNoToken;
    if (a.rows[r].kind == SampleKind::kNone) continue;
    const std::span<const float> logits(a.logits + r * a.V, n);
    const LogitScan found = scan_logits(logits);
    if (found.sound && std::isfinite(found.largest))
      a.tokens[r] = sample_token(logits, found.largest, a.rows[r], {scratch, n});
  }
  return {};
}

}  // namespace dsv4::reference
