#include "ops/trace.h"

#include <algorithm>
#include <chrono>
#include <set>

#include "ops/context.h"

namespace dsv4 {
namespace {

struct Work {
  int64_t bytes = 0, flops = 0;
};

int64_t matrix_bytes(const WeightView& w) {
  return weight_bytes(w.format, w.rows, w.cols) + scale_bytes(w.format, w.rows, w.cols);
}

Work matrix_work(const WeightView& w, int64_t T) {
  return {matrix_bytes(w), 2 * T * w.rows * w.cols};
}

template <class T>
Result<std::vector<T>> fetch(OpContext& ctx, const T* from, int64_t n) {
  std::vector<T> host(static_cast<size_t>(n));
  DSV4_TRY(ctx.backend.download(ctx.stream, host.data(), from, host.size() * sizeof(T)));
  DSV4_TRY(ctx.backend.synchronize(ctx.stream));
  return host;
}

// What a call reads that is not an activation, and what it computes. Ops that are not listed read
// activations only.
template <class Args>
Result<Work> work_of(OpContext&, const Args&) {
  return Work{};
}

template <>
Result<Work> work_of(OpContext&, const EmbedArgs& a) {
  return Work{a.T * a.D * 2, 0};
}

template <>
Result<Work> work_of(OpContext&, const HcPreArgs& a) {
  const int64_t n = a.hc * a.D, mix = (2 + a.hc) * a.hc;
  return Work{mix * n * 4, 2 * a.T * n * mix};
}

template <>
Result<Work> work_of(OpContext& ctx, const HcPreNormArgs& a) {
  return work_of(ctx, a.pre);
}

template <>
Result<Work> work_of(OpContext& ctx, const HcPostPreNormArgs& a) {
  return work_of(ctx, a.next.pre);
}

template <>
Result<Work> work_of(OpContext&, const HcHeadArgs& a) {
  const int64_t n = a.hc * a.D;
  return Work{a.hc * n * 4, 2 * a.R * n * a.hc};
}

template <>
Result<Work> work_of(OpContext&, const LinearArgs& a) {
  return matrix_work(a.w, a.T);
}

template <>
Result<Work> work_of(OpContext&, const LinearStackArgs& a) {
  Work sum;
  for (int32_t i = 0; i < a.n; ++i) {
    const Work w = matrix_work(a.w[i], a.T);
    sum.bytes += w.bytes;
    sum.flops += w.flops;
  }
  return sum;
}

template <>
Result<Work> work_of(OpContext&, const GroupedLinearArgs& a) {
  return matrix_work(a.w, a.T);
}

template <>
Result<Work> work_of(OpContext&, const RouterArgs& a) {
  return matrix_work(a.gate, a.T);
}

template <>
Result<Work> work_of(OpContext& ctx, const MoeArgs& a) {
  DSV4_ASSIGN(const std::vector<int32_t> ids, fetch(ctx, a.ids, a.T * a.k));
  const auto touched = static_cast<int64_t>(std::set<int32_t>(ids.begin(), ids.end()).size());
  const int64_t expert = matrix_bytes(a.w1) + matrix_bytes(a.w3) + matrix_bytes(a.w2);
  const int64_t shared =
      matrix_bytes(a.shared_w1) + matrix_bytes(a.shared_w3) + matrix_bytes(a.shared_w2);
  return Work{touched * expert + shared, a.T * 6 * a.D * (a.k * a.I + a.shared_I)};
}

template <>
Result<Work> work_of(OpContext& ctx, const IndexSelectArgs& a) {
  DSV4_ASSIGN(const std::vector<int32_t> positions, fetch(ctx, a.batch.positions, a.batch.rows));
  DSV4_ASSIGN(const std::vector<int32_t> begin,
              fetch(ctx, a.batch.seq_begin, a.batch.sequences + 1));
  Work w;
  for (int64_t s = 0; s < a.batch.sequences; ++s) {
    const auto last = static_cast<size_t>(begin[static_cast<size_t>(s) + 1] - 1);
    w.bytes += (positions[last] + 1) / a.ratio * a.keys.row_bytes;
  }
  for (const int32_t p : positions) w.flops += (p + 1) / a.ratio * a.heads * 2 * (a.e + 1);
  return w;
}

template <>
Result<Work> work_of(OpContext& ctx, const AttentionArgs& a) {
  DSV4_ASSIGN(const std::vector<int32_t> positions, fetch(ctx, a.batch.positions, a.batch.rows));
  DSV4_ASSIGN(const std::vector<int32_t> begin,
              fetch(ctx, a.batch.seq_begin, a.batch.sequences + 1));
  const bool compressed = a.entries.data != nullptr;
  const auto entries = [&](int64_t position, int64_t rows) {
    const int64_t visible = compressed ? (position + 1) / a.ratio : 0;
    return a.selected ? std::min(a.topk * rows, visible) : visible;
  };
  Work w;
  for (int64_t s = 0; s < a.batch.sequences; ++s) {
    const int64_t first = begin[static_cast<size_t>(s)], end = begin[static_cast<size_t>(s) + 1];
    const int64_t past = positions[static_cast<size_t>(first)];
    w.bytes += std::min(past, a.window - 1) * a.ring.row_bytes;
    w.bytes += entries(positions[static_cast<size_t>(end - 1)], end - first) * a.entries.row_bytes;
  }
  for (const int32_t p : positions) {
    w.flops += 4 * a.H * a.d * (std::min<int64_t>(a.window, p + 1) + entries(p, 1));
  }
  return w;
}

template <>
Result<Work> work_of(OpContext& ctx, const AttendArgs& a) {
  DSV4_ASSIGN(Work sum, work_of(ctx, a.attention));
  if (a.attention.selected) {
    DSV4_ASSIGN(const Work select, work_of(ctx, a.select));
    sum.bytes += select.bytes;
    sum.flops += select.flops;
  }
  return sum;
}

}  // namespace

template <class Args>
Status TraceTable::timed(OpContext& ctx, const Args& args, size_t index, const Op<Args>& inner) {
  const TraceTable& trace = static_cast<const TraceTable&>(ctx.ops);
  if (!trace.on_) return inner(ctx, args);
  using Clock = std::chrono::steady_clock;
  const int64_t outer_nested = trace.nested_ns_;
  trace.nested_ns_ = 0;
  DSV4_TRY(ctx.backend.synchronize(ctx.stream));
  const auto begin = Clock::now();
  DSV4_TRY(inner(ctx, args));
  DSV4_TRY(ctx.backend.synchronize(ctx.stream));
  const int64_t ns =
      std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin).count();
  OpRecord& r = trace.records_[index];
  // Made of leaves: they have counted the work already.
  if (trace.nested_ns_ == 0) {
    DSV4_ASSIGN(const Work work, work_of(ctx, args));
    r.bytes += work.bytes;
    r.flops += work.flops;
  }
  ++r.calls;
  r.ns += ns - trace.nested_ns_;
  trace.nested_ns_ = outer_nested + ns;
  return {};
}

namespace {

enum OpIndex : size_t {
#define DSV4_OP_INDEX(name, Args, kind) k_##name,
  DSV4_OP_LIST(DSV4_OP_INDEX)
#undef DSV4_OP_INDEX
};

#define DSV4_TRACED(name, Args, kind)                                  \
  Status traced_##name(OpContext& ctx, const Args& args) {             \
    const TraceTable& trace = static_cast<const TraceTable&>(ctx.ops); \
    return TraceTable::timed(ctx, args, k_##name, trace.inner().name); \
  }
DSV4_OP_LIST(DSV4_TRACED)
#undef DSV4_TRACED

}  // namespace

TraceTable::TraceTable(const OpTable& inner_table)
    : inner_(inner_table), records_(op_list().size()) {
#define DSV4_TRACE_OP(name, Args, kind) this->name = {traced_##name, inner_table.name.impl};
  DSV4_OP_LIST(DSV4_TRACE_OP)
#undef DSV4_TRACE_OP
}

void TraceTable::clear() const {
  records_.assign(records_.size(), OpRecord{});
}

}  // namespace dsv4
