#include "server/server.h"

#include "server/api_error.h"
#include "server/router.h"

namespace dsv4::server {

Server::Server(const ApiOptions& api, std::unique_ptr<Engine> engine, Tokenizer tokenizer)
    : app_(api, std::move(engine), std::move(tokenizer)) {}

Result<std::unique_ptr<Server>> Server::start(const ApiOptions& api, HttpServerOptions http,
                                              std::unique_ptr<Engine> engine,
                                              Tokenizer tokenizer) {
  std::unique_ptr<Server> server(new Server(api, std::move(engine), std::move(tokenizer)));
  App& app = server->app_;
  if (!api.cors_origin.empty()) {
    http.headers.emplace_back("Access-Control-Allow-Origin", api.cors_origin);
    if (api.cors_origin != "*") http.headers.emplace_back("Vary", "Origin");
  }
  http.on_answer = [&app](const HttpRequest& request, int status) {
    app.metrics.http(request.route.empty() ? "none" : request.route, status);
  };
  DSV4_ASSIGN(server->http_,
              HttpServer::start(
                  http, [&app](const std::shared_ptr<Exchange>& e) { dispatch(app, e); },
                  [](std::string_view path, int status, const std::string& message) {
                    return error_response(dialect_of(path),
                                          {.status = status, .message = message});
                  }));
  app.connections = [&http = *server->http_] { return http.connections(); };
  return server;
}

Server::~Server() {
  // Exchanges end first, which cancels their requests; then the engine lets go of its sinks, whose
  // last words need the event loops, stopped but there.
  if (http_) http_->stop();
  app_.engine.stop();
}

}  // namespace dsv4::server
