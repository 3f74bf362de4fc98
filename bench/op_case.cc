#include "bench/op_case.h"

#include <algorithm>
#include <cstring>

#include "formats/kv_row.h"

namespace dsv4::bench {
namespace {

bool converted(const HostArray& a, KvFormat format) {
  return a.kv_rows && format != KvFormat::kBf16;
}

Result<Buffer> upload_ints(Backend& backend, Stream& stream, const std::vector<int32_t>& v) {
  DSV4_ASSIGN(Buffer b, backend.allocate(std::max<size_t>(1, v.size()) * sizeof(int32_t)));
  DSV4_TRY(backend.upload(stream, b.data(), v.data(), v.size() * sizeof(int32_t)));
  return b;
}

}  // namespace

OpCase OpCase::absolute() const {
  OpCase c = *this;
  c.name += " |.|";
  for (HostArray& a : c.arrays) {
    const size_t step = dtype_size(a.dtype);
    if (a.dtype != DType::kBF16 && a.dtype != DType::kF32) continue;
    for (size_t i = step - 1; i < a.bytes.size(); i += step) a.bytes[i] &= 0x7f;
  }
  for (HostWeight& w : c.weights) w = w.absolute();
  return c;
}

Result<std::unique_ptr<Bound>> Bound::make(const OpCase& c, Backend& backend, Stream& stream) {
  auto bound = std::unique_ptr<Bound>(new Bound(c, backend, stream));
  for (size_t i = 0; i < c.arrays.size(); ++i) {
    const HostArray& a = c.arrays[i];
    size_t bytes = a.byte_count();
    if (converted(a, backend.kv_format())) {
      const int64_t d = a.shape[a.shape.rank - 1];
      bytes = static_cast<size_t>(a.shape.elements() / d *
                                  kv_row_bytes(backend.kv_format(), d, a.rope_dims));
    }
    DSV4_ASSIGN(Buffer b, backend.allocate(std::max<size_t>(bytes, 1)));
    bound->buffers_.push_back(std::move(b));
    if (a.use == Use::kIn) DSV4_TRY(bound->upload(i, a.bytes));
  }
  for (const HostWeight& w : c.weights) {
    DSV4_ASSIGN(PackedWeight packed, backend.pack(w.request()));
    bound->weights_.push_back(std::move(packed));
  }
  for (const HostBatch& b : c.batches) {
    BatchView view{.rows = b.rows(), .sequences = b.sequences(), .max_pages = b.max_pages};
    auto put = [&](const std::vector<int32_t>& v, const int32_t*& at) -> Status {
      DSV4_ASSIGN(Buffer buffer, upload_ints(backend, stream, v));
      at = buffer.as<int32_t>();
      bound->batch_buffers_.push_back(std::move(buffer));
      return {};
    };
    DSV4_TRY(put(b.tokens, view.tokens));
    DSV4_TRY(put(b.positions, view.positions));
    DSV4_TRY(put(b.row_seq, view.row_seq));
    DSV4_TRY(put(b.seq_begin, view.seq_begin));
    DSV4_TRY(put(b.seq_slot, view.seq_slot));
    DSV4_TRY(put(b.seq_pages, view.seq_pages));
    bound->batches_.push_back(view);
  }
  DSV4_TRY(bound->reset());
  return bound;
}

int64_t Bound::row_bytes(size_t array) const {
  const HostArray& a = case_.arrays[array];
  const int64_t d = a.shape[a.shape.rank - 1];
  return converted(a, kv_format()) ? kv_row_bytes(kv_format(), d, a.rope_dims)
                                   : d * static_cast<int64_t>(dtype_size(a.dtype));
}

size_t Bound::packed_bytes() const {
  size_t sum = 0;
  for (const PackedWeight& w : weights_) sum += w.bytes();
  return sum;
}

Status Bound::upload(size_t i, const std::vector<uint8_t>& bytes) {
  const HostArray& a = case_.arrays[i];
  if (!converted(a, kv_format())) {
    return backend_.upload(stream_, buffers_[i].data(), bytes.data(), bytes.size());
  }
  const int64_t d = a.shape[a.shape.rank - 1], n = a.shape.elements() / d, stride = row_bytes(i);
  std::vector<uint8_t> rows(static_cast<size_t>(n * stride));
  const bf16* from = reinterpret_cast<const bf16*>(bytes.data());
  for (int64_t row = 0; row < n; ++row)
    encode_kv_row(from + row * d, d, a.rope_dims, rows.data() + row * stride);
  DSV4_TRY(backend_.upload(stream_, buffers_[i].data(), rows.data(), rows.size()));
  return backend_.synchronize(stream_);
}

Status Bound::reset() {
  std::vector<uint8_t> poison;
  for (size_t i = 0; i < buffers_.size(); ++i) {
    const HostArray& a = case_.arrays[i];
    if (a.use == Use::kInOut) DSV4_TRY(upload(i, a.bytes));
    if (a.use != Use::kOut) continue;
    poison.assign(a.byte_count(), kPoison);
    if (a.dtype == DType::kI32) memset(poison.data(), kPoisonIndex & 0xff, poison.size());
    DSV4_TRY(upload(i, poison));
    DSV4_TRY(backend_.synchronize(stream_));
  }
  return backend_.synchronize(stream_);
}

Result<std::vector<HostArray>> Bound::download() const {
  std::vector<HostArray> out;
  for (size_t i = 0; i < buffers_.size(); ++i) {
    if (case_.arrays[i].use == Use::kIn) continue;
    HostArray a = case_.arrays[i];
    a.bytes.resize(a.byte_count());
    if (!converted(a, kv_format())) {
      DSV4_TRY(backend_.download(stream_, a.bytes.data(), buffers_[i].data(), a.bytes.size()));
      DSV4_TRY(backend_.synchronize(stream_));
    } else {
      const int64_t d = a.shape[a.shape.rank - 1], n = a.shape.elements() / d,
                    stride = row_bytes(i);
      std::vector<uint8_t> rows(static_cast<size_t>(n * stride));
      DSV4_TRY(backend_.download(stream_, rows.data(), buffers_[i].data(), rows.size()));
      DSV4_TRY(backend_.synchronize(stream_));
      for (int64_t row = 0; row < n; ++row) {
        decode_kv_row(rows.data() + row * stride, d, a.rope_dims, a.as<bf16>() + row * d);
      }
    }
    out.push_back(std::move(a));
  }
  return out;
}

size_t add_array(OpCase& c, std::string name, DType dtype, const Shape& shape, Use use) {
  HostArray a{.name = std::move(name), .dtype = dtype, .shape = shape, .use = use};
  if (use != Use::kOut) a.bytes.resize(a.byte_count());
  c.arrays.push_back(std::move(a));
  return c.arrays.size() - 1;
}

size_t add_normal(OpCase& c, Rng& rng, std::string name, DType dtype, const Shape& shape,
                  float spread, Use use, float mean) {
  const size_t i = add_array(c, std::move(name), dtype, shape, use);
  HostArray& a = c.arrays[i];
  for (int64_t k = 0; k < shape.elements(); ++k) {
    const float v = mean + rng.normal() * spread;
    if (dtype == DType::kBF16)
      a.as<bf16>()[k] = to_bf16(v);
    else
      a.as<float>()[k] = v;
  }
  return i;
}

size_t add_ints(OpCase& c, std::string name, const Shape& shape,
                const std::vector<int32_t>& values) {
  const size_t i = add_array(c, std::move(name), DType::kI32, shape, Use::kIn);
  if (!values.empty())
    memcpy(c.arrays[i].bytes.data(), values.data(), values.size() * sizeof(int32_t));
  return i;
}

size_t add_weight(OpCase& c, HostWeight w) {
  c.weights.push_back(std::move(w));
  return c.weights.size() - 1;
}

void split_rows(OpCase& c) {
  c.whole = {.first = 0, .rows = c.rows};
  for (int64_t t = 0; t < c.rows; ++t) c.split.push_back({.first = t, .rows = 1});
}

void round_kv_rows(HostArray& rows, int64_t head_dim, int64_t rope_dims) {
  rows.rope_dims = rope_dims;
  for (int64_t at = 0; at < rows.shape.elements(); at += head_dim) {
    for (int64_t i = 0; i < head_dim - rope_dims; i += kKv8Group) {
      kv8_round(rows.as<bf16>() + at + i,
                static_cast<int>(std::min<int64_t>(kKv8Group, head_dim - rope_dims - i)));
    }
  }
}

}  // namespace dsv4::bench
