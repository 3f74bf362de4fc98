#include "bench/serve_load.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <string_view>
#include <utility>

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>

#include "base/str.h"
#include "text/py_json.h"

namespace dsv4::bench {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;
using py::Value;

constexpr std::string_view kWords[] = {
    "the",  "fox",   "owl",  "river", "house", "garden", "little", "morning", "found", "friend",
    "went", "lived", "near", "lake",  "small", "rabbit", "happy",  "forest",  "said",  "and"};
constexpr std::string_view kAnimals[] = {"fox", "owl", "rabbit", "bear", "cat", "dog", "mouse", "frog"};

struct Address {
  std::string host, port, path;
};

Result<Address> parse_url(std::string_view url) {
  const auto wrong = [&] {
    return Status(Code::kInvalidArgument,
                  cat("--url ", url, ": expected http://HOST:PORT; for https put a proxy between"));
  };
  constexpr std::string_view kScheme = "http://";
  std::string_view rest = url;
  if (!rest.starts_with(kScheme)) return wrong();
  rest.remove_prefix(kScheme.size());
  Address out;
  const size_t slash = rest.find('/');
  if (slash != rest.npos) out.path = rest.substr(slash);
  while (out.path.ends_with('/')) out.path.pop_back();
  if (!out.path.ends_with("/v1")) out.path += "/v1";
  rest = rest.substr(0, slash);
  const size_t colon = rest.rfind(':');
  out.host = rest.substr(0, colon);
  out.port = colon == rest.npos ? "80" : rest.substr(colon + 1);
  if (out.host.empty() || out.port.empty()) return wrong();
  return out;
}

Value json_int(int64_t x) {
  return Value(py::Int{std::to_string(x)});
}

int64_t int_at(const Value* object, std::string_view key) {
  const Value* const v = object ? object->find(key) : nullptr;
  int64_t out = 0;
  if (v && v->if_int()) {
    const std::string& d = v->if_int()->digits;
    (void)std::from_chars(d.data(), d.data() + d.size(), out);
  }
  return out;
}

// One POST or GET and its answer, whose body is handed on as it comes.
class Exchange : public std::enable_shared_from_this<Exchange> {
 public:
  using OnBody = std::function<void(std::string_view)>;
  using OnEnd = std::function<void(int status, const std::string& error)>;

  Exchange(asio::io_context& context, std::chrono::duration<double> timeout)
      : stream_(context), timeout_(std::chrono::duration_cast<Clock::duration>(timeout)) {}

  void start(const tcp::resolver::results_type& endpoints, std::string request, OnBody on_body,
             OnEnd on_end) {
    request_ = std::move(request);
    on_body_ = std::move(on_body);
    on_end_ = std::move(on_end);
    parser_.body_limit(std::numeric_limits<uint64_t>::max());
    stream_.expires_after(timeout_);
    stream_.async_connect(endpoints, [self = shared_from_this()](error_code e, const auto&) {
      if (e) return self->end(e);
      error_code ignored;
      self->stream_.socket().set_option(tcp::no_delay(true), ignored);
      asio::async_write(self->stream_, asio::buffer(self->request_),
                        [self](error_code error, size_t) {
                          if (error) return self->end(error);
                          self->read();
                        });
    });
  }

 private:
  void read() {
    http::async_read_some(stream_, buffer_, parser_, [self = shared_from_this()](error_code e, size_t) {
      // Before `read` looks again: more of the body may be there.
      std::string& body = self->parser_.get().body();
      if (!body.empty()) self->on_body_(body);
      body.clear();
      if (e == http::error::end_of_stream && self->parser_.is_done()) e = {};
      if (e || self->parser_.is_done()) return self->end(e);
      self->read();
    });
  }
  void end(error_code e) {
    error_code ignored;
    stream_.socket().close(ignored);
    const auto on_end = std::exchange(on_end_, nullptr);
    on_body_ = nullptr;
    on_end(e ? 0 : static_cast<int>(parser_.get().result_int()), e ? e.message() : std::string());
  }

  beast::tcp_stream stream_;
  const Clock::duration timeout_;
  beast::flat_buffer buffer_;
  http::response_parser<http::string_body> parser_;
  std::string request_;
  OnBody on_body_;
  OnEnd on_end_;
};

class Run {
 public:
  Run(const ServeLoad& load, Address address, std::function<void(int64_t)> progress)
      : load_(load),
        address_(std::move(address)),
        progress_(std::move(progress)),
        rng_(load.seed),
        arrival_(context_) {}

  Result<std::vector<ServeSample>> run() {
    error_code error;
    tcp::resolver resolver(context_);
    endpoints_ = resolver.resolve(address_.host, address_.port, error);
    if (error) {
      return Status(Code::kIo, cat(load_.url, ": ", error.message()));
    }
    DSV4_TRY(find_model());
    const auto conversations = static_cast<size_t>((load_.requests + load_.turns - 1) / load_.turns);
    for (size_t i = 0; i < conversations; ++i) queue_.push_back(i);
    conversations_.resize(conversations);
    for (auto& messages : conversations_) {
      if (load_.shared_words > 0) messages.push_back(message("system", shared_text()));
    }
    begun_ = Clock::now();
    if (load_.rate > 0) {
      arrive();
    } else {
      const int64_t at_a_time = load_.concurrency > 0 ? load_.concurrency : 8;
      for (int64_t i = 0; i < at_a_time; ++i) next_conversation();
    }
    context_.restart();
    context_.run();
    return std::move(samples_);
  }

 private:
  static Value message(const char* role, std::string text) {
    return Value::object({{"role", role}, {"content", Value(std::move(text))}});
  }

  std::string words(int64_t n, std::mt19937_64& rng) const {
    std::string out;
    for (int64_t i = 0; i < n; ++i) out += cat(i > 0 ? " " : "", kWords[rng() % std::size(kWords)]);
    return out;
  }
  std::string shared_text() const {
    std::mt19937_64 same(load_.seed);
    return words(load_.shared_words, same);
  }
  // Different for every message, so that only what a conversation repeats can be in a cache.
  std::string question() {
    const std::string_view animal = kAnimals[rng_() % std::size(kAnimals)];
    const std::string ask = cat("Tell me a story about a ", animal, ".");
    return cat(words(std::max<int64_t>(0, load_.prompt_words - 7), rng_), ". ", ask);
  }

  std::string request(std::string_view method, std::string_view path, const std::string& body) const {
    std::string out = cat(method, " ", address_.path, path, " HTTP/1.1\r\nHost: ", address_.host, ":",
                          address_.port, "\r\nConnection: close\r\n");
    if (!load_.api_key.empty()) out += cat("Authorization: Bearer ", load_.api_key, "\r\n");
    if (method == "POST") {
      out += cat("Content-Type: application/json\r\nContent-Length: ", body.size(), "\r\n");
    }
    return cat(out, "\r\n", body);
  }

  Status find_model() {
    model_ = load_.model;
    if (!model_.empty()) return {};
    std::string body, problem;
    int status = 0;
    const auto exchange = std::make_shared<Exchange>(context_, std::chrono::seconds(30));
    exchange->start(
        endpoints_, request("GET", "/models", ""), [&](std::string_view piece) { body += piece; },
        [&](int s, const std::string& e) {
          status = s;
          problem = e;
        });
    context_.run();
    const auto answer = py::loads(body);
    const Value* const data = answer.ok() ? answer->find("data") : nullptr;
    const Value::Array* const list = data ? data->if_array() : nullptr;
    const Value* const id = list && !list->empty() ? list->front().find("id") : nullptr;
    if (status != 200 || !id || !id->if_string()) {
      return Status(Code::kIo, cat(load_.url, ": GET ", address_.path, "/models gave ",
                                   status == 0 ? problem : cat("status ", status),
                                   "; is the server running, does it ask for a key?"));
    }
    model_ = *id->if_string();
    return {};
  }

  double now() const { return std::chrono::duration<double>(Clock::now() - begun_).count(); }

  // Conversations begin at random times; their later turns follow at once.
  void arrive() {
    if (queue_.empty()) return;
    std::exponential_distribution<double> wait(load_.rate);
    arrival_.expires_after(
        std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(wait(rng_))));
    arrival_.async_wait([this](error_code e) {
      if (e) return;
      if (load_.concurrency == 0 || running_ < load_.concurrency) next_conversation();
      arrive();
    });
  }

  void next_conversation() {
    if (queue_.empty()) return;
    const size_t conversation = queue_.front();
    queue_.pop_front();
    ++running_;
    turn(conversation, 0);
  }

  void turn(size_t conversation, int64_t turn) {
    if (turn == load_.turns || begun_requests_ == load_.requests) {
      --running_;
      if (load_.rate <= 0) next_conversation();
      return;
    }
    ++begun_requests_;
    conversations_[conversation].push_back(message("user", question()));
    Value body = Value::object(
        {{"model", Value(model_)},
         {"messages", Value(conversations_[conversation])},
         {"max_tokens", json_int(load_.output_tokens)},
         {"seed", json_int(static_cast<int64_t>(load_.seed) + begun_requests_)},
         {"stream", true},
         {"stream_options", Value::object({{"include_usage", true}})}});
    if (load_.ignore_eos) body.set("ignore_eos", true);

    struct State {
      ServeSample sample;
      std::string held, content, raw;
      double last = 0;
      bool done = false;
    };
    const auto state = std::make_shared<State>();
    state->sample.conversation = static_cast<int64_t>(conversation);
    state->sample.turn = turn;
    state->sample.start = now();
    const auto on_event = [this, state](std::string_view json) {
      ServeSample& s = state->sample;
      if (json == "[DONE]") {
        state->done = true;
        return;
      }
      const auto event = py::loads(json);
      if (!event.ok()) return;
      if (const Value* error = event->find("error")) s.error = py::dumps(*error);
      if (const Value* usage = event->find("usage"); usage && usage->if_object()) {
        s.prompt_tokens = int_at(usage, "prompt_tokens");
        s.completion_tokens = int_at(usage, "completion_tokens");
        s.cached_tokens = int_at(usage->find("prompt_tokens_details"), "cached_tokens");
      }
      const Value* const choices = event->find("choices");
      if (!choices || !choices->if_array() || choices->if_array()->empty()) return;
      const Value* const delta = choices->if_array()->front().find("delta");
      if (!delta) return;
      const Value* const content = delta->find("content");
      const Value* const reasoning = delta->find("reasoning_content");
      if (content && content->if_string()) state->content += *content->if_string();
      if (!(content && content->truthy()) && !(reasoning && reasoning->truthy()) &&
          !delta->find("tool_calls")) {
        return;
      }
      const double t = now();
      if (s.first_token == 0) {
        s.first_token = t;
      } else {
        s.gaps.push_back(t - state->last);
      }
      state->last = t;
    };
    const auto exchange = std::make_shared<Exchange>(
        context_, std::chrono::duration<double>(load_.timeout_seconds));
    exchange->start(
        endpoints_, request("POST", "/chat/completions", py::dumps(body)),
        [state, on_event](std::string_view piece) {
          state->held += piece;
          if (state->raw.size() < 500) state->raw += piece;
          size_t at = 0;
          for (size_t end; (end = state->held.find('\n', at)) != std::string::npos; at = end + 1) {
            const std::string_view line = std::string_view(state->held).substr(at, end - at);
            if (line.starts_with("data: ")) on_event(line.substr(6));
          }
          state->held.erase(0, at);
        },
        [this, state, conversation, turn](int status, const std::string& error) {
          ServeSample& s = state->sample;
          s.end = now();
          if (status != 200 && s.error.empty()) {
            s.error = status == 0 ? error : cat("status ", status, ": ", state->raw);
          } else if (!state->done && s.error.empty()) {
            s.error = "the stream ended early";
          }
          conversations_[conversation].push_back(message("assistant", state->content));
          samples_.push_back(std::move(s));
          if (progress_) progress_(std::ssize(samples_));
          this->turn(conversation, turn + 1);
        });
  }

  const ServeLoad& load_;
  const Address address_;
  const std::function<void(int64_t)> progress_;
  std::mt19937_64 rng_;
  asio::io_context context_{1};
  asio::steady_timer arrival_;
  tcp::resolver::results_type endpoints_;
  std::string model_;
  Clock::time_point begun_;
  std::deque<size_t> queue_;
  std::vector<Value::Array> conversations_;
  std::vector<ServeSample> samples_;
  int64_t running_ = 0, begun_requests_ = 0;
};

}  // namespace

Result<std::vector<ServeSample>> run_serve_load(const ServeLoad& load,
                                                const std::function<void(int64_t)>& progress) {
  DSV4_ASSIGN(Address address, parse_url(load.url));
  return Run(load, std::move(address), progress).run();
}

}  // namespace dsv4::bench
