#include "ops/trace.h"

#include <algorithm>
#include <set>

#include "base/str.h"
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
Result<Work> work_of(OpContext& ctx, const AttentionPartsArgs& a) { return work_of(ctx, a.attention); }

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
Status TraceTable::note_work(OpContext& ctx, const Args& args, size_t index, const Op<Args>& inner) const {
  const int64_t before = ++run_calls_;
  DSV4_TRY(inner(ctx, args));
  OpRecord& r = records_[index];
  ++r.calls;
  // Made of leaves: they have counted the work already.
  if (run_calls_ > before) return {};
  DSV4_ASSIGN(const Work work, work_of(ctx, args));
  r.bytes += work.bytes;
  r.flops += work.flops;
  return {};
}

Result<int64_t> TraceTable::new_mark(Stream& stream) const {
  if (marks_used_ == marks_made_) {
    return Status(Code::kInternal, cat("trace: a run of more than ", most_calls_,
                                       " calls, the most that were watched for their work"));
  }
  DSV4_TRY(marks_->mark(stream, marks_used_));
  return marks_used_++;
}

template <class Args>
Status TraceTable::note_time(OpContext& ctx, const Args& args, size_t index, const Op<Args>& inner) const {
  if (run_finished_) {
    calls_.clear();
    marks_used_ = 0;
    running_ = -1;
    run_finished_ = false;
  }
  Call call{.op = index, .caller = running_};
  // Nothing but ops runs between two that nobody called; the caller of others may have run something.
  if (running_ < 0 && marks_used_ > 0) {
    call.begin = marks_used_ - 1;
  } else {
    DSV4_ASSIGN(call.begin, new_mark(ctx.stream));
  }
  const auto at = calls_.size();
  calls_.push_back(call);
  running_ = static_cast<int64_t>(at);
  DSV4_TRY(inner(ctx, args));
  running_ = call.caller;
  DSV4_ASSIGN(calls_[at].end, new_mark(ctx.stream));
  return {};
}

template <class Args>
Status TraceTable::watched(OpContext& ctx, const Args& args, size_t index, const Op<Args>& inner) {
  const TraceTable& trace = static_cast<const TraceTable&>(ctx.ops);
  switch (trace.watched_) {
    case Watched::kWork: return trace.note_work(ctx, args, index, inner);
    case Watched::kTime: return trace.note_time(ctx, args, index, inner);
    case Watched::kNothing: break;
  }
  return inner(ctx, args);
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
    return TraceTable::watched(ctx, args, k_##name, trace.inner().name); \
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

Status TraceTable::watch_time(Backend& backend) const {
  marks_made_ = 2 * most_calls_;
  DSV4_ASSIGN(marks_, backend.make_marks(marks_made_));
  watched_ = Watched::kTime;
  calls_.clear();
  run_finished_ = true;
  return {};
}

Status TraceTable::finish_run() const {
  most_calls_ = std::max(most_calls_, run_calls_);
  run_calls_ = 0;
  run_finished_ = true;
  if (watched_ != Watched::kTime) return {};
  for (const Call& call : calls_) {
    if (call.end < 0) return Status(Code::kInternal, "trace: a run whose ops failed has no times");
    DSV4_ASSIGN(const int64_t ns, marks_->nanoseconds(call.begin, call.end));
    ++records_[call.op].calls;
    records_[call.op].ns += ns;
    if (call.caller >= 0) records_[calls_[static_cast<size_t>(call.caller)].op].ns -= ns;
  }
  return {};
}

void TraceTable::clear() const { records_.assign(records_.size(), OpRecord{}); }

}  // namespace dsv4
