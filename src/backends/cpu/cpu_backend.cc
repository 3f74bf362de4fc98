#include "backends/cpu/cpu_backend.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "backends/cpu/core.h"
#include "backends/cpu/ops.h"
#include "backends/reference/reference_backend.h"
#include "base/memory.h"
#include "base/str.h"

namespace dsv4 {
namespace cpu {
namespace {

constexpr std::string_view kName = "cpu";

// Leaves that are not here stay with `reference`; those take no packed weight.
OpTable make_table(const OpTable& reference) {
  OpTable t = reference;
  fill_fallbacks(t);
  t.embed = {embed, kName};
  t.hc_pre = {hc_pre, kName};
  t.hc_pre_norm = {hc_pre_norm, kName};
  t.hc_post = {hc_post, kName};
  t.hc_head = {hc_head, kName};
  t.rms_norm = {rms_norm, kName};
  t.linear = {linear, kName};
  t.linear_stack = {linear_stack, kName};
  t.grouped_linear = {grouped_linear, kName};
  t.rope = {rope, kName};
  t.qkv = {qkv, kName};
  t.compress = {compress, kName};
  t.index_select = {index_select, kName};
  t.attention = {attention, kName};
  t.attention_parts = {attention_parts, kName};
  t.router = {router, kName};
  t.moe = {moe, kName};
  return t;
}

class CpuBackend : public Backend {
 public:
  CpuBackend(int threads, const Kernels& kernels) : core_(threads, kernels) {}

  Core& core() { return core_; }

  std::string_view name() const override { return kName; }
  std::string describe() const override {
    return cat("cpu: ", core_.kernels.isa, ", ", core_.pool.threads(),
               core_.pool.threads() == 1 ? " thread" : " threads");
  }
  const OpTable& ops() const override { return table_; }

  MemoryInfo memory() const override {
    const HostMemory host = host_memory();
    return {.total = host.total, .available = host.available};
  }

  Result<Buffer> allocate(size_t bytes) override { return allocate_pages(bytes); }
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

  Result<PackedWeight> pack(const PackRequest& request) override { return cpu::pack(core_.pool, request); }
  Status unpack(const PackedWeight& packed, int64_t index, void* weight, void* scale) override {
    return cpu::unpack(packed, index, weight, scale);
  }
  size_t packed_bytes(const PackRequest& request) const override { return cpu::packed_bytes(request); }

 private:
  std::unique_ptr<Backend> reference_ = make_reference_backend();
  OpTable table_ = make_table(reference_->ops());
  Core core_;
};

}  // namespace

Core& core(OpContext& ctx) { return static_cast<CpuBackend&>(ctx.backend).core(); }

}  // namespace cpu

Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuOptions& options) {
  int threads = options.threads;
  if (threads == 0) {
    DSV4_ASSIGN(threads, threads_from_environment());
  }
  const char* forced = std::getenv("DSV4_CPU_ISA");
  DSV4_ASSIGN(const cpu::Kernels kernels,
              cpu::select_kernels(options.isa.empty() && forced ? forced : options.isa));
  try {
    return std::unique_ptr<Backend>(std::make_unique<cpu::CpuBackend>(threads, kernels));
  } catch (const std::system_error& error) {
    return Status(Code::kResourceExhausted, cat("cannot start threads: ", error.what(), "; set DSV4_THREADS lower"));
  }
}

}  // namespace dsv4
