// TraceTable: an op table that watches another one. No hook in kernels or model: it is a table like
// any other, given to the Runner (or an OpContext) in place of the backend's.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "ops/backend.h"
#include "ops/op_table.h"

namespace dsv4 {

// What one op did while the trace watched.
struct OpRecord {
  int64_t calls = 0;
  int64_t ns = 0;     // without the ops that it called
  int64_t bytes = 0;  // weights as published, and cache rows, that the calls had to read
  int64_t flops = 0;
};

// What calls read and how long they take are found out in runs of their own: the first needs the ids and
// positions of the batch on the host, the second must leave the device alone. A run ends with finish_run().
//
// Entries find their TraceTable through OpContext::ops, so the context must hold this very object.
// Fused defaults call their leaves through the same context; each op's time is its own. One thread
// at a time.
class TraceTable : public OpTable {
 public:
  explicit TraceTable(const OpTable& inner);
  TraceTable(const TraceTable&) = delete;
  TraceTable& operator=(const TraceTable&) = delete;

  // Calls pass through until one of these two. From now on calls, bytes and flops:
  void watch_work() const { watched_ = Watched::kWork; }
  // From now on calls and times, by marks between the ops, also while they are recorded. An op's time begins
  // where the one before it ended, so what its first kernel does while that one ends is not in it. No run
  // may have more calls than the longest one that was watched for its work.
  Status watch_time(Backend& backend) const;
  // To be called when the stream was waited for. If no op was called since the last time, the run was a
  // replay of the one before.
  Status finish_run() const;
  void clear() const;
  // In the order of op_list().
  const std::vector<OpRecord>& records() const { return records_; }

  // For the entries.
  template <class Args>
  static Status watched(OpContext& ctx, const Args& args, size_t index, const Op<Args>& inner);
  const OpTable& inner() const { return inner_; }

 private:
  enum class Watched : uint8_t { kNothing, kWork, kTime };
  struct Call {
    size_t op = 0;
    int64_t caller = -1;            // index of the call that it is a part of; -1: none
    int64_t begin = -1, end = -1;  // marks
  };

  template <class Args>
  Status note_work(OpContext& ctx, const Args& args, size_t index, const Op<Args>& inner) const;
  template <class Args>
  Status note_time(OpContext& ctx, const Args& args, size_t index, const Op<Args>& inner) const;
  Result<int64_t> new_mark(Stream& stream) const;

  const OpTable& inner_;
  // A context holds its table as const; what a trace learns is not part of the table.
  mutable Watched watched_ = Watched::kNothing;
  mutable std::vector<OpRecord> records_;
  mutable int64_t run_calls_ = 0, most_calls_ = 0;  // of a run, while work is watched
  mutable std::unique_ptr<Marks> marks_;
  mutable int64_t marks_made_ = 0, marks_used_ = 0;
  mutable std::vector<Call> calls_;  // of the last run whose ops were called
  mutable bool run_finished_ = true;
  mutable int64_t running_ = -1;  // index into calls_
};

}  // namespace dsv4
