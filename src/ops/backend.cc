#include "ops/backend.h"

#include <cstdlib>

#include "base/str.h"

namespace dsv4 {

Result<Buffer> Backend::allocate_staging(size_t bytes) {
  void* p = std::calloc(bytes ? bytes : 1, 1);
  if (!p) return Status(Code::kResourceExhausted, cat("cannot allocate ", bytes, " bytes of memory"));
  return Buffer(p, bytes, MemoryKind::kHost, [](void* data, size_t) { std::free(data); });
}

Result<std::unique_ptr<Graph>> Backend::record(Stream&, const std::function<Status()>&) {
  return Status(Code::kUnsupported, cat(name(), ": this backend does not record ops"));
}

Status Backend::launch(Stream&, const Graph&) {
  return Status(Code::kUnsupported, cat(name(), ": this backend does not record ops"));
}

}  // namespace dsv4
