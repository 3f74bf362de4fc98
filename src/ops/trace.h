// TraceTable: an op table that times another one. No hook in kernels or model: it is a table like
// any other, given to the Runner (or an OpContext) in place of the backend's.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "ops/op_table.h"

namespace dsv4 {

// What one op did while the trace was on.
struct OpRecord {
  int64_t calls = 0;
  int64_t ns = 0;     // without the ops that it called
  int64_t bytes = 0;  // weights as published, and cache rows, that the calls had to read
  int64_t flops = 0;
};

// Entries find their TraceTable through OpContext::ops, so the context must hold this very object.
// Fused defaults call their leaves through the same context; each op's time is its own. One thread
// at a time.
class TraceTable : public OpTable {
 public:
  explicit TraceTable(const OpTable& inner);
  TraceTable(const TraceTable&) = delete;
  TraceTable& operator=(const TraceTable&) = delete;

  // Off: calls pass through. On: the stream is synchronised around every op.
  void enable(bool on) const { on_ = on; }
  void clear() const;
  // In the order of op_list().
  const std::vector<OpRecord>& records() const { return records_; }

  // For the entries.
  template <class Args>
  static Status timed(OpContext& ctx, const Args& args, size_t index, const Op<Args>& inner);
  const OpTable& inner() const { return inner_; }

 private:
  const OpTable& inner_;
  // A context holds its table as const; what a trace learns is not part of the table.
  mutable std::vector<OpRecord> records_;
  mutable int64_t nested_ns_ = 0;  // of the ops called by the running one
  mutable bool on_ = false;
};

}  // namespace dsv4
