// Work of which every worker owns a share: it does its own from the beginning and then what is left of the
// others', in pieces that grow smaller towards the end. So a core that other programs slow down does less,
// while memory stays with the worker that touched it first. Who does what changes no result.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "base/thread_pool.h"
#include "ops/workspace.h"

namespace dsv4::cpu {

class Shares {
 public:
  static Result<Shares> make(Workspace::Scope& scope, int workers) {
    Shares s;
    s.workers_ = workers;
    DSV4_ASSIGN(s.begun_, scope.take<int64_t>(workers * kStride));
    std::fill_n(s.begun_, workers * kStride, 0);
    return s;
  }

  // By every worker of a run: f(owner, range) for pieces of a share that has size(owner) units, until all
  // shares are begun. Pieces but the last are multiples of `step`.
  template <class Size, class F>
  void work(int worker, int64_t step, const Size& size, const F& f) const {
    for (int i = 0; i < workers_; ++i) {
      const int owner = (worker + i) % workers_;
      const int64_t n = size(owner);
      std::atomic_ref<int64_t> begun(begun_[owner * kStride]);
      for (int64_t begin = begun.load(std::memory_order_relaxed); begin < n;) {
        const int64_t end = std::min(n, begin + std::max(step, (n - begin) / 4 / step * step));
        if (!begun.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
        f(owner, IndexRange{begin, end});
        begin = begun.load(std::memory_order_relaxed);
      }
    }
  }

 private:
  static constexpr int64_t kStride = 8;  // a cache line for each
  int workers_ = 1;
  int64_t* begun_ = nullptr;  // [workers][kStride]
};

}  // namespace dsv4::cpu
