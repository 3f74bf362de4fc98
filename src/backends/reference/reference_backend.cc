#include "backends/reference/reference_backend.h"

#include <cstdlib>
#include <cstring>

#include "backends/reference/kernels.h"
#include "backends/reference/matrix.h"
#include "base/memory.h"
#include "base/str.h"

namespace dsv4 {
namespace reference {
namespace {

constexpr std::string_view kName = "reference";
constexpr size_t kAlign = 256;

Result<Buffer> allocate_host(size_t bytes) {
  const size_t rounded = (bytes + kAlign - 1) / kAlign * kAlign;
  void* p = std::aligned_alloc(kAlign, rounded ? rounded : kAlign);
  if (!p) {
    return Status(Code::kResourceExhausted,
                  cat("cannot allocate ", bytes, " bytes of memory; use a smaller context or batch"));
  }
  memset(p, 0, rounded);
  return Buffer(p, bytes, MemoryKind::kHost, [](void* data, size_t) { std::free(data); });
}

OpTable make_table() {
  OpTable t;
  fill_fallbacks(t);
  t.embed = {embed, kName};
  t.hc_pre = {hc_pre, kName};
  t.hc_post = {hc_post, kName};
  t.hc_head = {hc_head, kName};
  t.stream_add = {stream_add, kName};
  t.rms_norm = {rms_norm, kName};
  t.linear = {linear, kName};
  t.grouped_linear = {grouped_linear, kName};
  t.rope = {rope, kName};
  t.qkv = {qkv, kName};
  t.compress = {compress, kName};
  t.index_select = {index_select, kName};
  t.attention = {attention, kName};
  t.attention_parts = {attention_parts, kName};
  t.ring_insert = {ring_insert, kName};
  t.router = {router, kName};
  t.moe = {moe, kName};
  t.sample = {sample, kName};
  return t;
}

// Vectors are copied to aligned memory (I64 tables narrowed to I32 on the way).
Status copy_vector(const WeightSource& source, int64_t elements, Weight& weight) {
  const bool narrow = source.weight.dtype == DType::kI64;
  const size_t size = narrow ? sizeof(int32_t) : dtype_size(source.weight.dtype);
  DSV4_ASSIGN(weight.owned, allocate_host(static_cast<size_t>(elements) * size));
  if (!narrow) {
    memcpy(weight.owned.data(), source.weight.data, static_cast<size_t>(elements) * size);
    return {};
  }
  const char* from = static_cast<const char*>(source.weight.data);
  for (int64_t i = 0; i < elements; ++i) {
    int64_t value;
    memcpy(&value, from + i * 8, 8);
    weight.owned.as<int32_t>()[i] = static_cast<int32_t>(value);
  }
  return {};
}

class ReferenceBackend : public Backend {
 public:
  std::string_view name() const override { return kName; }
  std::string describe() const override { return "reference: scalar C++, one thread, FP64 sums"; }
  const OpTable& ops() const override { return table_; }
  bool exact_rounding() const override { return true; }

  MemoryInfo memory() const override {
    const HostMemory host = host_memory();
    return {.total = host.total, .available = host.available};
  }

  Result<Buffer> allocate(size_t bytes) override { return allocate_host(bytes); }
  Result<std::unique_ptr<Stream>> make_stream() override { return std::make_unique<Stream>(); }
  Status upload(Stream&, void* dst, const void* src, size_t bytes) override {
    if (bytes) memcpy(dst, src, bytes);
    return {};
  }
  Status download(Stream&, void* dst, const void* src, size_t bytes) override {
    if (bytes) memcpy(dst, src, bytes);
    return {};
  }
  Status synchronize(Stream&) override { return {}; }

  Result<PackedWeight> pack(const PackRequest& request) override {
    auto weight = std::make_unique<Weight>();
    WeightView view{.count = static_cast<int64_t>(request.sources.size()),
                    .rows = request.rows,
                    .cols = request.cols,
                    .format = request.sources.front().format};
    for (const WeightSource& source : request.sources) {
      weight->matrices.push_back({.format = source.format,
                                  .weight = source.weight.data,
                                  .scale = source.scale.data,
                                  .global_scale = source.global_scale,
                                  .rows = request.rows,
                                  .cols = request.cols});
    }
    if (request.role == WeightRole::kVector) {
      DSV4_TRY(copy_vector(request.sources.front(), request.rows * request.cols, *weight));
      weight->matrices.front().weight = view.plain = weight->owned.data();
    }
    const size_t bytes = weight->owned.bytes();
    return PackedWeight(std::move(weight), view, bytes);
  }

  Status unpack(const PackedWeight& packed, int64_t index, void* weight, void* scale) override {
    const Matrix& m = matrix(packed.view(), index);
    memcpy(weight, m.weight, static_cast<size_t>(weight_bytes(m.format, m.rows, m.cols)));
    if (scale && m.scale) memcpy(scale, m.scale, static_cast<size_t>(scale_bytes(m.format, m.rows, m.cols)));
    return {};
  }

  size_t packed_bytes(const PackRequest& request) const override {
    if (request.role != WeightRole::kVector) return 0;
    return static_cast<size_t>(weight_bytes(request.sources.front().format, request.rows, request.cols));
  }

 private:
  OpTable table_ = make_table();
};

}  // namespace
}  // namespace reference

std::unique_ptr<Backend> make_reference_backend() {
  return std::make_unique<reference::ReferenceBackend>();
}

}  // namespace dsv4
