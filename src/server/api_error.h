// What goes wrong with a request, and how each API says it.
#pragma once

#include <string>
#include <string_view>

#include "dsv4/status.h"
#include "server/http.h"

namespace dsv4::server {

struct ApiError {
  int status = 400;
  std::string message;
  std::string param;    // the field, as in "messages[2].content"; may be empty
  std::string code;     // OpenAI's `code`; may be empty
  int retry_after = 0;  // seconds; 0 = no such header
};

// The dialect of a path: /v1/messages speaks Anthropic's, everything else OpenAI's.
enum class Dialect { kOpenAi, kAnthropic };
Dialect dialect_of(std::string_view path);

HttpResponse error_response(Dialect dialect, const ApiError& error);
// The JSON of the error alone, for a stream that has begun.
std::string error_json(Dialect dialect, const ApiError& error);

// What an engine's error means to the client.
ApiError api_error(const Status& status);

}  // namespace dsv4::server
