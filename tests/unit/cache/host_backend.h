// A backend that has memory and nothing else, with an optional limit.
#pragma once

#include <cstdlib>
#include <cstring>
#include <limits>

#include "ops/backend.h"

namespace dsv4::testing {

class HostBackend : public Backend {
 public:
  explicit HostBackend(size_t limit = std::numeric_limits<size_t>::max()) : limit_(limit) {}

  std::string_view name() const override { return "host"; }
  std::string describe() const override { return "host memory"; }
  const OpTable& ops() const override { return ops_; }
  MemoryInfo memory() const override { return {}; }
  Result<Buffer> allocate(size_t bytes) override {
    if (bytes > limit_) return Status(Code::kResourceExhausted, "no memory left");
    limit_ -= bytes;
    return Buffer(std::calloc(1, bytes), bytes, MemoryKind::kHost,
                  [](void* p, size_t) { std::free(p); });
  }
  Result<std::unique_ptr<Stream>> make_stream() override { return std::make_unique<Stream>(); }
  Status upload(Stream&, void* dst, const void* src, size_t bytes) override {
    std::memcpy(dst, src, bytes);
    return {};
  }
  Status download(Stream&, void* dst, const void* src, size_t bytes) override {
    std::memcpy(dst, src, bytes);
    return {};
  }
  Status synchronize(Stream&) override { return {}; }
  Result<PackedWeight> pack(const PackRequest&) override { return PackedWeight(); }
  Status unpack(const PackedWeight&, int64_t, void*, void*) override { return {}; }
  size_t packed_bytes(const PackRequest&) const override { return 0; }

 private:
  OpTable ops_;
  size_t limit_;
};

}  // namespace dsv4::testing
