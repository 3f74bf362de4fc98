// Server: an engine behind HTTP.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "dsv4/engine.h"
#include "dsv4/status.h"
#include "server/app.h"
#include "server/http_server.h"
#include "text/tokenizer.h"

namespace dsv4::server {

class Server {
 public:
  // Listens and answers at once.
  static Result<std::unique_ptr<Server>> start(const ApiOptions& api, HttpServerOptions http,
                                               std::unique_ptr<Engine> engine,
                                               Tokenizer tokenizer);
  // Stops at once: what still runs is cut off.
  ~Server();

  uint16_t port() const { return http_->port(); }
  // Takes no more requests and lets those that run end; then `on_idle` is called, on a thread of the
  // server.
  void drain(std::function<void()> on_idle) { http_->drain(std::move(on_idle)); }

 private:
  Server(const ApiOptions& api, std::unique_ptr<Engine> engine, Tokenizer tokenizer);

  App app_;
  std::unique_ptr<HttpServer> http_;
};

}  // namespace dsv4::server
