// Work of which every worker owns a share: it does its own from the beginning and then what is left of the
// others', in pieces that grow smaller towards the end. So a core that other programs slow down does less,
// while memory stays with the worker that touched it first. Who does what changes no result.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "backends/cpu/tiles.h"
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

  // By every worker of a run, until all shares are begun: f(i, range) for units of list i of `lists`, which has
  // units(i) of them. Every list is split among the owners; an owner's share is its part of the first, of the second,
  // ... Pieces of a share but the last are multiples of `step`.
  template <class Units, class F>
  void work(int worker, int64_t step, int64_t lists, const Units& units, const F& f) const {
    work_in_parts(worker, step, 1, lists, units, [&](int64_t i, IndexRange range, IndexRange) { f(i, range); });
  }

  // The same with the last unit of a share cut into `parts`: f(i, range, the parts of these units). Otherwise whoever
  // is done waits for a whole unit of another.
  template <class Units, class F>
  void work_in_parts(int worker, int64_t step, int64_t parts, int64_t lists, const Units& units, const F& f) const {
    const auto owned = [&](int64_t i, int owner) { return split_range(units(i), workers_, owner); };
    const auto size = [&](int owner) {
      int64_t n = 0;
      for (int64_t i = 0; i < lists; ++i) n += owned(i, owner).end - owned(i, owner).begin;
      return n;
    };
    take_pieces(worker, step, parts, size, [&](int owner, IndexRange in_parts) {
      IndexRange piece{in_parts.begin / parts, ceil_div(in_parts.end, parts)};
      const int64_t part = in_parts.begin % parts;
      const bool whole = in_parts.end - in_parts.begin >= parts;
      const IndexRange of_units{whole ? 0 : part, whole ? parts : part + 1};
      for (int64_t i = 0; i < lists; ++i) {
        const IndexRange own = owned(i, owner);
        const int64_t n = own.end - own.begin;
        const IndexRange range{own.begin + std::max<int64_t>(piece.begin, 0), own.begin + std::min(piece.end, n)};
        if (range.begin < range.end) f(i, range, of_units);
        piece = {piece.begin - n, piece.end - n};
      }
    });
  }

 private:
  // f(owner, range) for pieces of a share of size(owner) units, in parts: whole units, or one part of the last.
  template <class Size, class F>
  void take_pieces(int worker, int64_t step, int64_t parts, const Size& size, const F& f) const {
    for (int i = 0; i < workers_; ++i) {
      const int owner = (worker + i) % workers_;
      const int64_t n = size(owner) * parts, least = step * parts;
      std::atomic_ref<int64_t> begun(begun_[owner * kStride]);
      for (int64_t begin = begun.load(std::memory_order_relaxed); begin < n;) {
        const int64_t piece = n - begin <= parts ? 1 : std::max(least, (n - begin) / 4 / least * least);
        const int64_t end = std::min(n, begin + piece);
        if (!begun.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
        f(owner, IndexRange{begin, end});
        begin = begun.load(std::memory_order_relaxed);
      }
    }
  }

  static constexpr int64_t kStride = 8;  // a cache line for each
  int workers_ = 1;
  int64_t* begun_ = nullptr;  // [workers][kStride]
};

}  // namespace dsv4::cpu
