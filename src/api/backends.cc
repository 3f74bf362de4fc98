#include "api/backends.h"

#include <optional>

#include "backends/cpu/cpu_backend.h"
#ifdef DSV4_CUDA
#include "backends/cuda/cuda_backend.h"
#endif
#include "backends/reference/reference_backend.h"
#include "base/str.h"
#include "dsv4/engine.h"

namespace dsv4 {
namespace {

struct Registration {
  std::string_view name;
  Result<std::unique_ptr<Backend>> (*make)();
};

// Best first: "auto" takes the first that works on this machine.
constexpr Registration kBackends[] = {
#ifdef DSV4_CUDA
    {"cuda", [] { return make_cuda_backend(); }},
#endif
    {"cpu", [] { return make_cpu_backend(); }},
    {"reference", []() -> Result<std::unique_ptr<Backend>> { return make_reference_backend(); }},
};

// nullopt: "auto".
Result<std::optional<KvFormat>> parse_cache_rows(std::string_view name) {
  if (name == "auto") return std::optional<KvFormat>();
  for (const KvFormat format : {KvFormat::kFp8Rope, KvFormat::kBf16}) {
    if (name == kv_format_name(format)) return std::optional(format);
  }
  return Status(Code::kInvalidArgument, cat("unknown cache rows \"", name, "\": expected fp8, bf16 or auto"));
}

}  // namespace

std::vector<std::string_view> backend_names() {
  std::vector<std::string_view> names;
  for (const Registration& r : kBackends) names.push_back(r.name);
  return names;
}

Result<std::unique_ptr<Backend>> make_backend(std::string_view name, std::string_view cache_rows) {
  DSV4_ASSIGN(const std::optional<KvFormat> format, parse_cache_rows(cache_rows));
  std::string known, failures;
  for (const Registration& r : kBackends) {
    known += cat(known.empty() ? "" : ", ", r.name);
    if (name != "auto" && name != r.name) continue;
    auto backend = r.make();
    if (backend.ok() && format) (*backend)->choose_kv_format(*format);
    // A wrong setting is not a reason to take another backend.
    if (backend.ok() || name == r.name || backend.status().code() == Code::kInvalidArgument) return backend;
    failures += cat("; ", r.name, ": ", backend.status().message());
  }
  if (name == "auto") return Status(Code::kUnsupported, cat("no backend works here", failures));
  return Status(Code::kInvalidArgument,
                cat("unknown device \"", name, "\": this program has ", known, ", or auto"));
}

}  // namespace dsv4
