// The HTTP/1.1 server: a few I/O threads, each with its own event loop; a connection stays on one of
// them. Open connections cost memory, not threads.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "dsv4/status.h"
#include "server/http.h"

namespace dsv4::server {

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 0;  // 0 = any free one
  int threads = 2;
  int64_t max_connections = 4096;
  uint64_t max_body_bytes = 32u << 20;
  // A client that is slower than this is cut off: from the first byte of a request to the end of
  // its header, from there to the end of its body, and for each piece of an answer it has to take.
  std::chrono::seconds header_timeout{10}, body_timeout{60}, write_timeout{60};
  std::chrono::seconds idle_timeout{120};  // between requests
  size_t max_unsent_bytes = 16u << 20;     // of a stream whose client does not read
  Headers headers;                         // of every answer
  // Called when an answer begins, on its I/O thread.
  std::function<void(const HttpRequest& request, int status)> on_answer;
};

class HttpServer {
 public:
  // Listens and serves at once. `handler` is called on I/O threads; requests that HTTP itself
  // refuses (too large, malformed) reach `on_refused`, which makes the answer; `path` is empty where
  // it was not read.
  using Refuse = std::function<HttpResponse(std::string_view path, int status,
                                            const std::string& message)>;
  static Result<std::unique_ptr<HttpServer>> start(const HttpServerOptions& options,
                                                   Handler handler, Refuse on_refused);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  uint16_t port() const;

  // Accepts nothing more, closes connections without a request, and lets running exchanges finish;
  // `on_idle` is called once, on an I/O thread, when the last one has ended.
  void drain(std::function<void()> on_idle);

  // Closes everything at once and ends the I/O threads; exchanges learn that their client has gone.
  // What is posted to one later is dropped.
  void stop();

  int64_t connections() const;

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace dsv4::server
