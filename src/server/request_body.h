// What every endpoint that takes JSON begins with.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "server/generation.h"
#include "server/http.h"
#include "text/py_json.h"

namespace dsv4::server {

// The body as JSON. Otherwise answers the exchange with what is wrong and returns nothing.
std::optional<py::Value> read_body(const std::shared_ptr<Exchange>& exchange);

// `n` times the same, with seeds that differ: seed, seed + 1, ... where there is one.
std::vector<GenerationSpec> repeat(GenerationSpec spec, int64_t n);

}  // namespace dsv4::server
