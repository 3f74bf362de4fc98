// The backends that this program was built with. The only place that names concrete ones.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "dsv4/status.h"
#include "ops/backend.h"

namespace dsv4 {

// A name of backend_names() (dsv4/engine.h), or "auto": the first of them that works here.
// `cache_rows`: "fp8" or "bf16" for the rows of its caches, or "auto": what serves this backend best.
Result<std::unique_ptr<Backend>> make_backend(std::string_view name, std::string_view cache_rows = "auto");

}  // namespace dsv4
