#include "server/http_server.h"

#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cctype>
#include <deque>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>

#include "base/str.h"
#include "server/ids.h"

namespace dsv4::server {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

constexpr uint32_t kMaxHeaderBytes = 64u << 10;
// A refused body is read on and thrown away, this much and this long, so that the client gets to
// read the refusal instead of a reset connection.
constexpr size_t kLingerBytes = 256u << 20;
constexpr std::chrono::seconds kLinger{10};

std::string hex(size_t n) {
  char text[17];
  const auto [end, error] = std::to_chars(text, text + sizeof text, n, 16);
  return std::string(text, end);
}

class Connection;

class ConnectionExchange final : public Exchange,
                                 public std::enable_shared_from_this<ConnectionExchange> {
 public:
  ConnectionExchange(std::shared_ptr<Connection> connection, HttpRequest request)
      : connection_(std::move(connection)), request_(std::move(request)) {}

  HttpRequest& request() override { return request_; }
  void respond(HttpResponse response) override;
  void begin_stream(HttpResponse head) override;
  void write(std::string_view bytes) override;
  void end_stream() override;
  bool open() const override { return open_; }
  void set_on_close(std::function<void()> on_close) override {
    if (open_) on_close_ = std::move(on_close);
  }
  void post(std::function<void()> work) override;

  // The answer is complete.
  void finish() {
    open_ = false;
    on_close_ = nullptr;
  }
  void client_gone() {
    if (!std::exchange(open_, false)) return;
    if (const auto on_close = std::exchange(on_close_, nullptr)) on_close();
  }

 private:
  const std::shared_ptr<Connection> connection_;
  HttpRequest request_;
  std::function<void()> on_close_;
  bool open_ = true;
};

// What connections share.
struct Shared {
  HttpServerOptions options;
  Handler handler;
  HttpServer::Refuse refuse;
  std::atomic<int64_t> connections{0};
  std::atomic<int64_t> exchanges{0};
  std::atomic<bool> draining{false};
  std::function<void()> on_idle;  // set before `draining`
  std::atomic<bool> idle_told{false};

  void tell_if_idle() {
    if (draining && exchanges == 0 && !idle_told.exchange(true) && on_idle) on_idle();
  }
};

// One I/O thread.
struct Loop {
  asio::io_context context{1};
  std::set<std::shared_ptr<Connection>> connections;  // touched on its own thread only
  std::thread thread;
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, Shared& shared, Loop& loop)
      : stream_(std::move(socket)), shared_(shared), loop_(loop) {
    ++shared_.connections;
  }
  ~Connection() { --shared_.connections; }

  void start() {
    error_code ignored;
    stream_.socket().set_option(tcp::no_delay(true), ignored);
    loop_.connections.insert(shared_from_this());
    next_request();
  }

  // For drain(): a connection without a request has nothing to wait for.
  void close_if_idle() {
    if (!busy_) close();
  }
  void close() {
    const auto self = shared_from_this();
    error_code ignored;
    stream_.socket().close(ignored);
    if (exchange_) end_exchange(/*gone=*/true);
    loop_.connections.erase(self);
    not_busy();
  }

  void post(std::function<void()> work) { asio::post(loop_.context, std::move(work)); }

  void respond(const ConnectionExchange* from, HttpResponse response) {
    if (exchange_.get() != from) return;
    if (response.status != 204) {
      response.headers.emplace_back("Content-Length", std::to_string(response.body.size()));
    }
    std::string bytes = head(response);
    if (!head_request_) bytes += response.body;
    end_exchange(/*gone=*/false);
    last_write_ = true;
    send(std::move(bytes));
  }
  void begin_stream(const ConnectionExchange* from, HttpResponse response) {
    if (exchange_.get() != from) return;
    chunked_ = http_1_1_;
    if (chunked_) {
      response.headers.emplace_back("Transfer-Encoding", "chunked");
    } else {
      keep_alive_ = false;
    }
    send(head(response));
  }
  void write(const ConnectionExchange* from, std::string_view bytes) {
    if (exchange_.get() != from || bytes.empty()) return;
    if (unsent_ + bytes.size() > shared_.options.max_unsent_bytes) return close();
    send(chunked_ ? cat(hex(bytes.size()), "\r\n", bytes, "\r\n") : std::string(bytes));
  }
  void end_stream(const ConnectionExchange* from) {
    if (exchange_.get() != from) return;
    end_exchange(/*gone=*/false);
    last_write_ = true;
    send(chunked_ ? "0\r\n\r\n" : "");
  }

 private:
  void end_exchange(bool gone) {
    const auto exchange = std::exchange(exchange_, nullptr);
    if (gone) {
      exchange->client_gone();
    } else {
      exchange->finish();
    }
  }
  // The answer is with the client, or there is no client any more.
  void not_busy() {
    if (!std::exchange(busy_, false)) return;
    --shared_.exchanges;
    shared_.tell_if_idle();
  }

  std::string head(const HttpResponse& r) {
    if (shared_.options.on_answer) shared_.options.on_answer(exchange_->request(), r.status);
    keep_alive_ = keep_alive_ && !shared_.draining;
    std::string out = cat("HTTP/1.1 ", r.status, " ", reason_phrase(r.status), "\r\n");
    out += cat("Content-Type: ", r.content_type, "\r\n");
    out += cat("x-request-id: ", exchange_->request().id, "\r\n");
    out += cat("request-id: ", exchange_->request().id, "\r\n");
    for (const auto& [name, value] : shared_.options.headers) out += cat(name, ": ", value, "\r\n");
    for (const auto& [name, value] : r.headers) out += cat(name, ": ", value, "\r\n");
    out += keep_alive_ ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n";
    return out;
  }

  void next_request() {
    if (shared_.draining) return close();
    parser_.emplace();
    parser_->header_limit(kMaxHeaderBytes);
    parser_->body_limit(shared_.options.max_body_bytes);
    last_write_ = false;
    if (buffer_.size() > 0) return read_header();
    // Waiting for a request may take long, reading one may not.
    stream_.expires_after(shared_.options.idle_timeout);
    stream_.async_read_some(buffer_.prepare(16 << 10),
                            [self = shared_from_this()](error_code error, size_t n) {
                              if (error) return self->close();
                              self->buffer_.commit(n);
                              self->read_header();
                            });
  }

  void read_header() {
    stream_.expires_after(shared_.options.header_timeout);
    http::async_read_header(stream_, buffer_, *parser_,
                            [self = shared_from_this()](error_code error, size_t) {
                              if (error) return self->refuse(error);
                              self->read_body();
                            });
  }

  void read_body() {
    const auto& fields = parser_->get();
    http_1_1_ = fields.version() >= 11;
    keep_alive_ = parser_->keep_alive();
    stream_.expires_after(shared_.options.body_timeout);
    if (beast::iequals(fields[http::field::expect], "100-continue") && !parser_->is_done()) {
      static const std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
      asio::async_write(stream_, asio::buffer(kContinue.data(), kContinue.size()),
                        [self = shared_from_this()](error_code error, size_t) {
                          if (error) return self->close();
                          self->read_rest();
                        });
      return;
    }
    read_rest();
  }

  void read_rest() {
    http::async_read(stream_, buffer_, *parser_,
                     [self = shared_from_this()](error_code error, size_t) {
                       if (error) return self->refuse(error);
                       self->handle();
                     });
  }

  void handle() {
    stream_.expires_never();
    auto message = parser_->release();
    HttpRequest request;
    const auto method = message.method_string();
    request.method.assign(method.data(), method.size());
    const std::string_view target(message.target().data(), message.target().size());
    const size_t mark = target.find('?');
    request.path = target.substr(0, mark);
    if (mark != target.npos) request.query = target.substr(mark + 1);
    for (const auto& field : message) {
      std::string name(field.name_string().data(), field.name_string().size());
      std::transform(name.begin(), name.end(), name.begin(), [](char c) {
        return static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      });
      request.headers.emplace_back(std::move(name),
                                   std::string(field.value().data(), field.value().size()));
    }
    request.body = std::move(message.body());
    head_request_ = request.method == "HEAD";
    begin_exchange(std::move(request));
    const std::shared_ptr<ConnectionExchange> exchange = exchange_;
    watch();
    try {
      shared_.handler(exchange);
    } catch (const std::exception& e) {
      if (exchange->open()) exchange->respond(shared_.refuse(exchange->request().path, 500, e.what()));
    }
  }

  void begin_exchange(HttpRequest request) {
    request.id = random_id("req_");
    ++shared_.exchanges;
    busy_ = true;
    exchange_ = std::make_shared<ConnectionExchange>(shared_from_this(), std::move(request));
  }

  // Notices that the client hangs up while its answer is being made.
  void watch() {
    if (std::exchange(watching_, true)) return;
    stream_.socket().async_wait(tcp::socket::wait_read,
                                [self = shared_from_this()](error_code error) {
                                  self->watching_ = false;
                                  if (!error && self->exchange_) self->look();
                                });
  }
  void look() {
    char byte;
    const ssize_t n = ::recv(stream_.socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
      return close();
    }
    // A byte: the next request, sent ahead. It is read when its turn comes.
    if (n < 0) watch();
  }

  void refuse(error_code error) {
    int status = 400;
    std::string message = cat("malformed HTTP request: ", error.message());
    if (error == http::error::body_limit) {
      status = 413;
      message = cat("the request body is larger than ", shared_.options.max_body_bytes,
                    " bytes; send less or start the server with a larger --max-body");
    } else if (error == http::error::header_limit) {
      status = 431;
      message = cat("the request header is larger than ", kMaxHeaderBytes, " bytes");
    } else if (error == beast::error::timeout) {
      // tcp_stream has closed the socket: there is nobody to tell.
      return close();
    } else if (error.category() != http::make_error_code(http::error::bad_method).category() ||
               error == http::error::end_of_stream || error == http::error::partial_message) {
      return close();
    }
    keep_alive_ = false;
    linger_ = true;
    HttpRequest request;
    const auto target = parser_->get().target();
    request.path.assign(target.data(), target.size());
    begin_exchange(std::move(request));
    // Copied: responding lets go of it.
    const auto exchange = exchange_;
    exchange->respond(shared_.refuse(exchange->request().path, status, message));
  }

  void send(std::string bytes) {
    unsent_ += bytes.size();
    outgoing_.push_back(std::move(bytes));
    if (!writing_) write_some();
  }

  // Writes all that is queued with one call.
  void write_some() {
    sending_.clear();
    for (std::string& bytes : outgoing_) sending_ += bytes;
    outgoing_.clear();
    writing_ = true;
    stream_.expires_after(shared_.options.write_timeout);
    asio::async_write(stream_, asio::buffer(sending_),
                      [self = shared_from_this()](error_code error, size_t) {
                        self->writing_ = false;
                        self->unsent_ -= self->sending_.size();
                        if (error) return self->close();
                        if (!self->outgoing_.empty()) return self->write_some();
                        self->stream_.expires_never();
                        if (self->last_write_) self->answered();
                      });
  }

  void answered() {
    not_busy();
    if (keep_alive_) {
      next_request();
    } else {
      error_code ignored;
      stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
      if (linger_) {
        stream_.expires_after(kLinger);
        linger();
      } else {
        close();
      }
    }
  }

  void linger() {
    buffer_.clear();
    stream_.async_read_some(buffer_.prepare(64 << 10),
                            [self = shared_from_this()](error_code error, size_t n) {
                              self->lingered_ += n;
                              if (error || self->lingered_ > kLingerBytes) return self->close();
                              self->linger();
                            });
  }

  beast::tcp_stream stream_;
  Shared& shared_;
  Loop& loop_;
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  std::shared_ptr<ConnectionExchange> exchange_;  // the request that is being answered
  std::vector<std::string> outgoing_;
  std::string sending_;
  size_t unsent_ = 0;
  size_t lingered_ = 0;
  bool busy_ = false;  // from a request to the end of its answer
  bool writing_ = false;
  bool last_write_ = false;  // the answer is complete once everything is written
  bool watching_ = false;
  bool keep_alive_ = true;
  bool http_1_1_ = true;
  bool chunked_ = false;
  bool head_request_ = false;
  bool linger_ = false;
};

void ConnectionExchange::respond(HttpResponse response) {
  if (open_) connection_->respond(this, std::move(response));
}
void ConnectionExchange::begin_stream(HttpResponse head) {
  if (open_) connection_->begin_stream(this, std::move(head));
}
void ConnectionExchange::write(std::string_view bytes) {
  if (open_) connection_->write(this, bytes);
}
void ConnectionExchange::end_stream() {
  if (open_) connection_->end_stream(this);
}
void ConnectionExchange::post(std::function<void()> work) {
  connection_->post(std::move(work));
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(const HttpServerOptions& options, Handler handler, Refuse refuse) {
    shared_.options = options;
    shared_.handler = std::move(handler);
    shared_.refuse = std::move(refuse);
    for (int i = 0; i < std::max(1, options.threads); ++i) loops_.emplace_back();
  }

  ~Impl() { stop(); }

  void stop() {
    for (Loop& loop : loops_) loop.context.stop();
    for (Loop& loop : loops_) {
      if (loop.thread.joinable()) loop.thread.join();
    }
    // Connections hold themselves through their own handlers; exchanges are told that it is over.
    for (Loop& loop : loops_) {
      while (!loop.connections.empty()) {
        const auto connection = *loop.connections.begin();
        connection->close();
      }
    }
  }

  Status listen() {
    const HttpServerOptions& o = shared_.options;
    error_code error;
    tcp::resolver resolver(loops_.front().context);
    const auto found = resolver.resolve(o.host, std::to_string(o.port),
                                        tcp::resolver::passive | tcp::resolver::numeric_service,
                                        error);
    if (error || found.empty()) {
      return Status(Code::kInvalidArgument, cat("--host ", o.host, ": is no address of this machine (",
                                                error.message(), "); try 127.0.0.1 or 0.0.0.0"));
    }
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_.emplace(loops_.front().context);
    acceptor_->open(endpoint.protocol(), error);
    if (!error) acceptor_->set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_->bind(endpoint, error);
    if (!error) acceptor_->listen(asio::socket_base::max_listen_connections, error);
    if (error) {
      return Status(Code::kIo, cat("cannot listen on ", o.host, " port ", o.port, ": ",
                                   error.message(), "; is another server running there?"));
    }
    port_ = acceptor_->local_endpoint(error).port();
    retry_.emplace(loops_.front().context);
    accept();
    for (Loop& loop : loops_) {
      loop.thread = std::thread([&loop] {
        const auto work = asio::make_work_guard(loop.context);
        loop.context.run();
      });
    }
    return {};
  }

  void drain(std::function<void()> on_idle) {
    shared_.on_idle = std::move(on_idle);
    shared_.draining = true;
    asio::post(loops_.front().context, [this] {
      error_code ignored;
      acceptor_->close(ignored);
    });
    for (Loop& loop : loops_) {
      asio::post(loop.context, [this, &loop] {
        const auto connections = loop.connections;
        for (const auto& connection : connections) connection->close_if_idle();
        shared_.tell_if_idle();
      });
    }
  }

  uint16_t port() const { return port_; }
  int64_t connections() const { return shared_.connections; }

 private:
  void accept() {
    Loop& loop = loops_[next_++ % loops_.size()];
    acceptor_->async_accept(loop.context, [this, &loop](error_code error, tcp::socket socket) {
      if (shared_.draining || error == asio::error::operation_aborted) return;
      if (error) {
        // Out of file descriptors, most likely: wait for some to come back.
        retry_->expires_after(std::chrono::milliseconds(100));
        retry_->async_wait([this](error_code e) {
          if (!e) accept();
        });
        return;
      }
      if (shared_.connections < shared_.options.max_connections) {
        auto connection = std::make_shared<Connection>(std::move(socket), shared_, loop);
        asio::post(loop.context, [connection] { connection->start(); });
      }
      accept();
    });
  }

  Shared shared_;  // outlives the loops, whose handlers hold connections
  std::deque<Loop> loops_;
  std::optional<tcp::acceptor> acceptor_;
  std::optional<asio::steady_timer> retry_;
  size_t next_ = 0;
  uint16_t port_ = 0;
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

Result<std::unique_ptr<HttpServer>> HttpServer::start(const HttpServerOptions& options,
                                                      Handler handler, Refuse on_refused) {
  auto impl = std::make_unique<Impl>(options, std::move(handler), std::move(on_refused));
  DSV4_TRY(impl->listen());
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

uint16_t HttpServer::port() const {
  return impl_->port();
}
void HttpServer::drain(std::function<void()> on_idle) {
  impl_->drain(std::move(on_idle));
}
void HttpServer::stop() {
  impl_->stop();
}
int64_t HttpServer::connections() const {
  return impl_->connections();
}

}  // namespace dsv4::server
