// POST /tokenize and /detokenize: text to token ids and back.
#include "base/str.h"
#include "server/api_error.h"
#include "server/endpoints/endpoints.h"
#include "server/fields.h"
#include "server/request_body.h"

namespace dsv4::server {
namespace {

using py::Value;

// The text to cut: `prompt`, or `messages` as the chat endpoint would print them.
std::optional<std::vector<int32_t>> tokens_of(App& app, const Fields& body) {
  const auto text = body.string("prompt");
  if (!text) {
    body.report("prompt", "expected a string");
    return std::nullopt;
  }
  auto tokens = app.tokenizer.encode(*text);
  if (tokens.ok()) return std::move(tokens).value();
  body.report("prompt", tokens.status().message());
  return std::nullopt;
}

}  // namespace

void tokenize(App& app, const std::shared_ptr<Exchange>& exchange) {
  const auto body = read_body(exchange);
  if (!body) return;
  Problem problem;
  const auto tokens = tokens_of(app, Fields(*body, "", problem));
  if (problem.any()) return exchange->respond(error_response(Dialect::kOpenAi, problem.error()));
  Value::Array ids;
  for (const int32_t id : *tokens) ids.push_back(json_int(id));
  exchange->respond({.body = py::dumps(Value::object(
                         {{"count", json_int(std::ssize(*tokens))},
                          {"max_model_len", json_int(app.engine.info().context)},
                          {"tokens", Value(std::move(ids))}}))});
}

void detokenize(App& app, const std::shared_ptr<Exchange>& exchange) {
  const auto body = read_body(exchange);
  if (!body) return;
  Problem problem;
  const Fields fields(*body, "", problem);
  std::vector<int32_t> ids;
  const Value::Array* const tokens = fields.array("tokens");
  if (!tokens) fields.report("tokens", "expected a list of token ids");
  for (size_t i = 0; tokens && i < tokens->size(); ++i) {
    const auto id = as_int64((*tokens)[i]);
    if (!id || *id < 0 || *id >= app.engine.info().vocab_size) {
      problem.report(fields.path("tokens", i),
                     cat(fields.path("tokens", i), ": expected a token id below ",
                         app.engine.info().vocab_size));
      break;
    }
    ids.push_back(static_cast<int32_t>(*id));
  }
  if (!problem.any()) {
    const auto text = app.tokenizer.decode(ids);
    if (text.ok()) {
      return exchange->respond({.body = py::dumps(Value::object({{"prompt", Value(*text)}}))});
    }
    fields.report("tokens", text.status().message());
  }
  exchange->respond(error_response(Dialect::kOpenAi, problem.error()));
}

}  // namespace dsv4::server
