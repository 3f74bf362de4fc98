// Backend: memory, streams, packing and the op table of one kind of device.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/buffer.h"
#include "dsv4/status.h"
#include "ops/cache_spec.h"
#include "ops/op_table.h"
#include "ops/weight.h"

namespace dsv4 {

// An order of execution. On the CPU everything has happened when an op returns.
class Stream {
 public:
  virtual ~Stream() = default;
};

// Ops and copies recorded once, to be run again with the same arguments: what they read may have changed.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual int64_t launches() const = 0;  // of kernels and copies
};

// Moments on a stream, numbered by the caller.
class Marks {
 public:
  virtual ~Marks() = default;
  // Mark i is passed when all that the stream holds has run. Inside a recorded body it becomes a part of
  // it, passed anew by every launch.
  virtual Status mark(Stream& stream, int64_t i) = 0;
  // From mark to mark as they were last passed; both must have been, so synchronise before.
  virtual Result<int64_t> nanoseconds(int64_t from, int64_t to) const = 0;
};

struct MemoryInfo {
  size_t total = 0, available = 0;  // bytes of the memory where weights and cache live
};

// What the device of a backend can do at most, for benchmarks.
struct Ceilings {
  double read_bytes_per_s = 0;  // 0: this backend does not measure itself
  double flops_per_s = 0;       // BF16 products, FP32 sums
  std::string flops_of;         // which instruction
  int64_t cache_bytes = 0;                       // of the last level
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;   // "reference", "cpu", "cuda"
  virtual std::string describe() const = 0;    // one line for people: device, ISA, threads
  virtual const OpTable& ops() const = 0;
  virtual MemoryInfo memory() const = 0;
  // True where allocate() takes from the host's memory.
  virtual bool shares_host_memory() const { return true; }
  // Rows of ring and entries in the caches that are made for this backend: what serves it best, unless another format is
  // chosen before the first of them is made. Its ops take both.
  KvFormat kv_format() const { return kv_format_; }
  void choose_kv_format(KvFormat format) { kv_format_ = format; }
  // True where every BF16 rounding point inside the ops is the published one; such a backend is held
  // to the sharper limits of the golden comparison. Fused backends may stay in FP32 in between.
  virtual bool exact_rounding() const { return false; }

  // Memory for weights, cache and activations; 256-byte aligned, zero-filled.
  virtual Result<Buffer> allocate(size_t bytes) = 0;
  // Host memory that uploads and downloads of this backend reach fastest; zero-filled.
  virtual Result<Buffer> allocate_staging(size_t bytes);
  virtual Result<std::unique_ptr<Stream>> make_stream() = 0;
  virtual Status upload(Stream& stream, void* dst, const void* host_src, size_t bytes) = 0;
  virtual Status download(Stream& stream, void* host_dst, const void* src, size_t bytes) = 0;
  virtual Status synchronize(Stream& stream) = 0;

  // Where the backend can record: `body` calls ops on the stream and copies between memory of
  // allocate_staging() and of allocate(); nothing runs, and what would have run comes back. Every shape in
  // it must have run before, so that no memory has to be found. A launch copies what is there by then.
  virtual bool can_record() const { return false; }
  virtual Result<std::unique_ptr<Graph>> record(Stream& stream, const std::function<Status()>& body);
  virtual Status launch(Stream& stream, const Graph& graph);

  // n of them, numbered from 0, in the time of the device. Where ops have run when they return that is the
  // host's clock, as here.
  virtual Result<std::unique_ptr<Marks>> make_marks(int64_t n);

  virtual Result<Ceilings> measure_ceilings() { return Ceilings{}; }

  // The physical layout of a weight. `unpack` is its inverse: the published bytes of source `index`
  // (weight, then scale), bit for bit; tests hold every backend to it.
  virtual Result<PackedWeight> pack(const PackRequest& request) = 0;
  virtual Status unpack(const PackedWeight& packed, int64_t index, void* weight, void* scale) = 0;
  // Memory that pack would own for this request; sources need dtype and shape only.
  virtual size_t packed_bytes(const PackRequest& request) const = 0;

 private:
  KvFormat kv_format_ = KvFormat::kBf16;
};

// Bytes of one key/value row.
int64_t kv_row_bytes(KvFormat format, int64_t head_dim, int64_t rope_dim);

}  // namespace dsv4
