// OpCase: one call of one op with data, for any backend. The host data is made once from a seed;
// bind() puts it into a backend's memory, reset() restores what the op changes and poisons what it
// writes, run() calls the op of a table, download() brings back what it left. Parity tests and
// benchmarks share the cases, so what is timed is what is compared.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "bench/host_weight.h"
#include "bench/random.h"
#include "ops/backend.h"
#include "ops/context.h"

namespace dsv4::bench {

enum class Use : uint8_t {
  kIn,
  kInOut,  // restored by reset(), compared
  kOut,    // poisoned by reset(), compared
};

struct HostArray {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  Use use = Use::kIn;
  std::vector<uint8_t> bytes;  // initial content; empty for kOut
  // Key/value rows of the cache: BF16 here, the backend's KvFormat in its memory.
  bool kv_rows = false;
  int64_t rope_dims = 0;

  template <class T>
  T* as() {
    return reinterpret_cast<T*>(bytes.data());
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
  size_t byte_count() const { return static_cast<size_t>(shape.elements()) * dtype_size(dtype); }
};

// The host side of a BatchView.
struct HostBatch {
  std::vector<int32_t> tokens, positions, row_seq, seq_begin, seq_slot, seq_pages;
  int64_t max_pages = 0;
  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
  int64_t sequences() const { return static_cast<int64_t>(seq_slot.size()); }
};

// A part of the case's rows; a case can run whole or part by part, with the same result.
struct Step {
  int64_t first = 0, rows = 0;
  size_t batch = 0;  // index into OpCase::batches, where the op takes one
};

// What one call must move and compute at least.
struct Cost {
  int64_t weight_bytes = 0;  // as published: codes and scales
  int64_t other_bytes = 0;   // activations in and out, cache rows
  int64_t flops = 0;
};

class Bound;

struct OpCase {
  std::string op, name;
  int64_t rows = 0;
  std::vector<HostArray> arrays;
  std::vector<HostWeight> weights;
  std::vector<HostBatch> batches;
  std::function<Status(OpContext&, const Bound&, const Step&)> call;
  Step whole;
  std::vector<Step> split;  // together the same work as `whole`
  Cost cost;
  int64_t sum_length = 0;  // terms of the longest sum, for error bounds

  // Signs cleared everywhere: what `reference` gives for it is sum |x||w|. For linear ops only.
  OpCase absolute() const;
};

// A case in a backend's memory. Borrows the case.
class Bound {
 public:
  static Result<std::unique_ptr<Bound>> make(const OpCase& c, Backend& backend, Stream& stream);

  template <class T>
  T* at(size_t array) const {
    return buffers_[array].as<T>();
  }
  WeightView weight(size_t i) const { return weights_[i].view(); }
  const BatchView& batch(const Step& step) const { return batches_[step.batch]; }
  KvFormat kv_format() const { return backend_.kv_format(); }
  // Bytes of one row of array i in the backend's memory.
  int64_t row_bytes(size_t array) const;
  size_t packed_bytes() const;

  // Inputs that the op changes as they were; outputs as a NaN pattern.
  Status reset();
  // The compared arrays, in the order of OpCase::arrays; kv_rows as BF16.
  Result<std::vector<HostArray>> download() const;

  const OpCase& op_case() const { return case_; }

 private:
  Bound(const OpCase& c, Backend& backend, Stream& stream)
      : case_(c), backend_(backend), stream_(stream) {}
  Status upload(size_t i, const std::vector<uint8_t>& bytes);

  const OpCase& case_;
  Backend& backend_;
  Stream& stream_;
  std::vector<Buffer> buffers_;
  std::vector<PackedWeight> weights_;
  std::vector<Buffer> batch_buffers_;
  std::vector<BatchView> batches_;
};

// The byte that poisons outputs: NaN as BF16 and FP32, no plausible index as I32.
inline constexpr uint8_t kPoison = 0xff;
inline constexpr int32_t kPoisonIndex = 0x7f7f7f7f;

// Tokens per page in all cases.
inline constexpr int64_t kSpan = 256;

// For building cases. Each returns the index of what it added.
size_t add_array(OpCase& c, std::string name, DType dtype, const Shape& shape, Use use);
size_t add_normal(OpCase& c, Rng& rng, std::string name, DType dtype, const Shape& shape,
                  float spread, Use use = Use::kIn, float mean = 0.0f);
size_t add_ints(OpCase& c, std::string name, const Shape& shape,
                const std::vector<int32_t>& values);
size_t add_weight(OpCase& c, HostWeight w);
// One step per row.
void split_rows(OpCase& c);

// Rows of key/value as kv8 and RoPE leave them.
void round_kv_rows(HostArray& rows, int64_t head_dim, int64_t rope_dims);

}  // namespace dsv4::bench
