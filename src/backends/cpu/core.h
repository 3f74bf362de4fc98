// What the ops of this backend share: threads, vector code, and the way to both from an OpContext.
#pragma once

#include <vector>

#include "backends/cpu/kernels.h"
#include "backends/cpu/tiles.h"
#include "base/buffer.h"
#include "base/thread_pool.h"
#include "ops/context.h"

namespace dsv4::cpu {

struct Core {
  Core(int threads, const Kernels& k) : pool(threads), kernels(k) {}
  ThreadPool pool;
  Kernels kernels;
};

// f(item) for items 0 .. n-1, shared among the workers. `work` is about how many values all items touch
// together: below a few microseconds' worth the caller does it alone, as waking the others takes longer.
template <class F>
void for_items(ThreadPool& pool, int64_t n, int64_t work, const F& f) {
  constexpr int64_t kAlone = 20000;
  if (work <= kAlone) {
    for (int64_t i = 0; i < n; ++i) f(i);
    return;
  }
  pool.run([&](int worker) {
    const IndexRange range = split_range(n, pool.threads(), worker);
    for (int64_t i = range.begin; i < range.end; ++i) f(i);
  });
}

// The context's backend is always the one whose table holds the op.
Core& core(OpContext& ctx);

// Packed weight: one Tiles per source, or per group of a grouped linear; vectors and embeddings keep
// row-major elements in `owned`.
struct Weight : PackedWeight::Impl {
  WeightRole role = WeightRole::kVector;
  std::vector<Tiles> matrices;
  int64_t groups = 1;
  Buffer owned;
};

inline const Weight& weight(const WeightView& view) { return *static_cast<const Weight*>(view.impl); }
inline const Tiles& tiles(const WeightView& view, int64_t index = 0) {
  return weight(view).matrices[static_cast<size_t>(index)];
}

Result<PackedWeight> pack(ThreadPool& pool, const PackRequest& request);
Status unpack(const PackedWeight& packed, int64_t index, void* weight_out, void* scale_out);
size_t packed_bytes(const PackRequest& request);

// Memory for packed weights: huge pages where the system grants them; untouched, so that the thread
// that writes a page first decides on which node it lies.
Result<Buffer> allocate_pages(size_t bytes);

}  // namespace dsv4::cpu
