// POST /v1/messages/count_tokens: how long the prompt of a request of /v1/messages is.
#include "server/anthropic_request.h"
#include "server/endpoints/endpoints.h"
#include "server/request_body.h"

namespace dsv4::server {

void count_tokens(App& app, const std::shared_ptr<Exchange>& exchange) {
  const auto body = read_body(exchange);
  if (!body) return;
  Problem problem;
  Conversation conversation = read_anthropic_request(app, Fields(*body, "", problem));
  std::optional<GenerationSpec> spec;
  if (!problem.any()) spec = make_spec(app, std::move(conversation), problem);
  if (problem.any()) return exchange->respond(error_response(Dialect::kAnthropic, problem.error()));
  exchange->respond({.body = py::dumps(py::Value::object(
                         {{"input_tokens", json_int(std::ssize(spec->request.prompt))}}))});
}

}  // namespace dsv4::server
