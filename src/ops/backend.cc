#include "ops/backend.h"

#include <chrono>
#include <cstdlib>
#include <vector>

#include "base/str.h"

namespace dsv4 {
namespace {

class HostMarks : public Marks {
 public:
  explicit HostMarks(int64_t n) : at_(static_cast<size_t>(n)) {}

  Status mark(Stream&, int64_t i) override {
    at_[static_cast<size_t>(i)] = Clock::now();
    return {};
  }
  Result<int64_t> nanoseconds(int64_t from, int64_t to) const override {
    const auto time = at_[static_cast<size_t>(to)] - at_[static_cast<size_t>(from)];
    return std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  std::vector<Clock::time_point> at_;
};

}  // namespace

Result<Buffer> Backend::allocate_staging(size_t bytes) {
  void* p = std::calloc(bytes ? bytes : 1, 1);
  if (!p) return Status(Code::kResourceExhausted, cat("cannot allocate ", bytes, " bytes of memory"));
  return Buffer(p, bytes, MemoryKind::kHost, [](void* data, size_t) { std::free(data); });
}

Result<std::unique_ptr<Marks>> Backend::make_marks(int64_t n) {
  return std::unique_ptr<Marks>(std::make_unique<HostMarks>(n));
}

Result<std::unique_ptr<Graph>> Backend::record(Stream&, const std::function<Status()>&) {
  return Status(Code::kUnsupported, cat(name(), ": this backend does not record ops"));
}

Status Backend::launch(Stream&, const Graph&) {
  return Status(Code::kUnsupported, cat(name(), ": this backend does not record ops"));
}

}  // namespace dsv4
