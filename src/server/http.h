// HTTP as the endpoints see it: a request that was read whole, and the exchange that answers it. The
// library underneath appears in http_server.cc only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dsv4::server {

using Headers = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;  // "GET", "POST", ...
  std::string path;    // "/v1/models", without the query
  std::string query;   // behind the '?', as sent
  Headers headers;     // names in lower case
  std::string body;
  std::string id;                 // of this request, as the answer's header x-request-id says it
  std::string_view route = "";  // the pattern that matched, for the metrics; static text

  // The value of the first header with this name (lower case); nullptr where there is none.
  const std::string* header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  Headers headers;
};

// One request and its answer: respond() once, or begin_stream(), write()..., end_stream(). After the
// client has gone all of them do nothing. Everything but post() is called on the connection's own
// I/O thread, where the handler runs too.
class Exchange {
 public:
  virtual ~Exchange() = default;

  virtual HttpRequest& request() = 0;
  virtual void respond(HttpResponse response) = 0;
  // `head.body` is not looked at. The body follows in chunks of any size.
  virtual void begin_stream(HttpResponse head) = 0;
  virtual void write(std::string_view bytes) = 0;
  virtual void end_stream() = 0;
  // False once the answer is complete or the client has gone.
  virtual bool open() const = 0;
  // Called at most once, when the client goes away before its answer was complete. What it holds
  // is released when the exchange ends.
  virtual void set_on_close(std::function<void()> on_close) = 0;

  // From any thread: runs `work` on the I/O thread, soon, in order. Dropped when the server has
  // stopped.
  virtual void post(std::function<void()> work) = 0;
};

using Handler = std::function<void(std::shared_ptr<Exchange>)>;

std::string_view reason_phrase(int status);

}  // namespace dsv4::server
