#include "server/api_error.h"

#include "text/py_json.h"

namespace dsv4::server {
namespace {

// Anthropic's documented pairs of status and type.
std::string_view anthropic_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
    case 529:
      return "overloaded_error";
    default:
      return status < 500 ? "invalid_request_error" : "api_error";
  }
}

std::string_view openai_type(int status) {
  if (status == 401) return "authentication_error";
  if (status == 404) return "not_found_error";
  if (status == 429) return "rate_limit_error";
  return status < 500 ? "invalid_request_error" : "server_error";
}

py::Value or_null(const std::string& text) {
  return text.empty() ? py::Value() : py::Value(text);
}

}  // namespace

Dialect dialect_of(std::string_view path) {
  return path.starts_with("/v1/messages") ? Dialect::kAnthropic : Dialect::kOpenAi;
}

std::string error_json(Dialect dialect, const ApiError& e) {
  if (dialect == Dialect::kAnthropic) {
    const std::string message =
        e.param.empty() || e.message.starts_with(e.param) ? e.message : e.param + ": " + e.message;
    return py::dumps(py::Value::object(
        {{"type", "error"},
         {"error", py::Value::object({{"type", anthropic_type(e.status)}, {"message", message}})}}));
  }
  return py::dumps(py::Value::object({{"error", py::Value::object({{"message", e.message},
                                                                   {"type", openai_type(e.status)},
                                                                   {"param", or_null(e.param)},
                                                                   {"code", or_null(e.code)}})}}));
}

HttpResponse error_response(Dialect dialect, const ApiError& error) {
  HttpResponse response;
  response.status = error.status;
  // Anthropic's own status for a server that is too busy or on its way out.
  if (dialect == Dialect::kAnthropic && error.status == 503) response.status = 529;
  response.body = error_json(dialect, error);
  if (error.retry_after > 0) {
    response.headers.emplace_back("Retry-After", std::to_string(error.retry_after));
  }
  return response;
}

ApiError api_error(const Status& status) {
  ApiError error{.message = status.message()};
  switch (status.code()) {
    case Code::kInvalidArgument:
    case Code::kUnsupported:
    case Code::kCorrupt:
      break;
    case Code::kNotFound:
      error.status = 404;
      break;
    case Code::kTooLong:
      error.code = "context_length_exceeded";
      break;
    case Code::kUnavailable:
    case Code::kResourceExhausted:
      error.status = 429;
      error.code = "rate_limit_exceeded";
      error.retry_after = 1;
      break;
    case Code::kCancelled:
      error.status = 503;
      error.retry_after = 5;
      break;
    default:
      error.status = 500;
  }
  return error;
}

}  // namespace dsv4::server
