// POST /v1/responses: OpenAI's newer API. Nothing is stored here: every request brings its whole input.
#include "base/str.h"
#include "server/answers.h"
#include "server/endpoints/endpoints.h"
#include "server/request_body.h"
#include "server/responses_request.h"
#include "server/responses_writer.h"

namespace dsv4::server {

void responses(App& app, const std::shared_ptr<Exchange>& exchange) {
  const auto body = read_body(exchange);
  if (!body) return;
  Problem problem;
  ResponsesRequest request = read_responses_request(app, Fields(*body, "", problem));
  std::optional<GenerationSpec> spec;
  if (!problem.any()) spec = make_spec(app, std::move(request.conversation), problem);
  if (problem.any()) return exchange->respond(error_response(Dialect::kOpenAi, problem.error()));
  const auto writer = std::make_shared<ResponsesWriter>(app, exchange, request.stream,
                                                        std::move(request.echoed));
  const auto error = start_answers(app, exchange, repeat(std::move(*spec), 1), writer);
  if (error) return exchange->respond(error_response(Dialect::kOpenAi, *error));
  writer->begin();
}

}  // namespace dsv4::server
