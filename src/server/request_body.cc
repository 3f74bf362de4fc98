#include "server/request_body.h"

#include "base/str.h"
#include "server/api_error.h"

namespace dsv4::server {

std::optional<py::Value> read_body(const std::shared_ptr<Exchange>& exchange) {
  const HttpRequest& request = exchange->request();
  auto value = py::loads(request.body);
  if (value.ok()) {
    exchange->request().body = {};  // it can be large, and the answer may take long
    return std::move(value).value();
  }
  ApiError error{.message = cat("the request body is not JSON: ", value.status().message())};
  exchange->respond(error_response(dialect_of(request.path), error));
  return std::nullopt;
}

std::vector<GenerationSpec> repeat(GenerationSpec spec, int64_t n) {
  std::vector<GenerationSpec> specs(static_cast<size_t>(n), spec);
  for (size_t i = 0; i < specs.size(); ++i) {
    if (auto& seed = specs[i].request.sampling.seed) *seed += i;
  }
  return specs;
}

}  // namespace dsv4::server
