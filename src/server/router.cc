#include "server/router.h"

#include <algorithm>
#include <string_view>

#include "base/str.h"
#include "server/api_error.h"
#include "server/endpoints/endpoints.h"

namespace dsv4::server {
namespace {

struct Route {
  std::string_view method;
  std::string_view path;  // one that ends in '/' matches everything below it
  Endpoint endpoint;
  bool needs_key;
};

constexpr Route kRoutes[] = {
    {"GET", "/", page, false},
    {"GET", "/health", health, false},
    {"GET", "/metrics", metrics, false},
    {"GET", "/v1/models", models, true},
    {"GET", "/v1/models/", models, true},
    {"POST", "/v1/chat/completions", chat_completions, true},
    {"POST", "/v1/completions", completions, true},
    {"POST", "/v1/responses", responses, true},
    {"POST", "/v1/messages", messages, true},
    {"POST", "/v1/messages/count_tokens", count_tokens, true},
    {"POST", "/tokenize", tokenize, true},
    {"POST", "/detokenize", detokenize, true},
};

bool matches(const Route& route, std::string_view path) {
  return route.path.size() > 1 && route.path.ends_with('/')
             ? path.starts_with(route.path) && path.size() > route.path.size()
             : path == route.path;
}

// Takes the same time for every key of the same length.
bool same(std::string_view a, std::string_view b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    difference |= static_cast<unsigned>(static_cast<unsigned char>(a[i] ^ b[i]));
  }
  return difference == 0;
}

// "Authorization: Bearer KEY" (OpenAI) or "x-api-key: KEY" (Anthropic).
bool has_key(const App& app, const HttpRequest& request) {
  const auto& keys = app.options.api_keys;
  if (keys.empty()) return true;
  std::string_view given;
  if (const std::string* h = request.header("x-api-key")) given = *h;
  if (const std::string* h = request.header("authorization"); h && h->starts_with("Bearer ")) {
    given = std::string_view(*h).substr(7);
  }
  bool known = false;
  for (const std::string& key : keys) known |= same(key, given);
  return known;
}

}  // namespace

void dispatch(App& app, const std::shared_ptr<Exchange>& exchange) {
  HttpRequest& request = exchange->request();
  const Dialect dialect = dialect_of(request.path);
  const std::string_view method =
      request.method == "HEAD" ? std::string_view("GET") : std::string_view(request.method);
  std::string allowed;
  for (const Route& route : kRoutes) {
    if (!matches(route, request.path)) continue;
    request.route = route.path;
    if (route.method != method) {
      allowed += cat(allowed.empty() ? "" : ", ", route.method);
      continue;
    }
    if (route.needs_key && !has_key(app, request)) {
      ApiError error{.status = 401,
                     .message = "no API key or an unknown one; send it as \"Authorization: Bearer "
                                "KEY\" or \"x-api-key: KEY\"",
                     .code = "invalid_api_key"};
      return exchange->respond(error_response(dialect, error));
    }
    return route.endpoint(app, exchange);
  }
  if (!allowed.empty()) {
    HttpResponse response;
    if (request.method == "OPTIONS") {  // a browser's question before a request across origins
      response.status = 204;
      response.headers = {
          {"Access-Control-Allow-Methods", allowed},
          {"Access-Control-Allow-Headers", "authorization, content-type, x-api-key, "
                                           "anthropic-version, anthropic-beta"},
          {"Access-Control-Max-Age", "86400"}};
    } else {
      response = error_response(
          dialect, {.status = 405,
                    .message = cat(request.method, " ", request.path, ": expected ", allowed)});
    }
    response.headers.emplace_back("Allow", allowed + ", OPTIONS");
    return exchange->respond(std::move(response));
  }
  exchange->respond(error_response(
      dialect, {.status = 404, .message = cat(request.path, ": there is no such endpoint")}));
}

}  // namespace dsv4::server
