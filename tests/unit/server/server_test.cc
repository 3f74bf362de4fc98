// The whole server over a tiny model, under the sanitizers: many clients at once, clients that go away,
// and ends of the server at any moment.
#include "server/server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/str.h"
#include "unit/engine/tiny_model.h"

namespace dsv4::server {
namespace {

std::unique_ptr<Server> start(HttpServerOptions http = {}) {
  EngineOptions options;
  options.model_dir = testing::tiny_model_dir();
  options.device = "reference";
  options.context = 320;
  options.max_sequences = 4;
  auto engine = Engine::load(options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  auto tokenizer = Tokenizer::load(options.model_dir + "/tokenizer.json");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  auto server = Server::start({.model_name = "tiny"}, http, std::move(engine).value(),
                              std::move(tokenizer).value());
  EXPECT_TRUE(server.ok()) << server.status().message();
  return std::move(server).value();
}

class Client {
 public:
  explicit Client(uint16_t port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  ~Client() { ::close(socket_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  void post(const std::string& path, const std::string& body) {
    send(cat("POST ", path, " HTTP/1.1\r\nConnection: close\r\nContent-Length: ", body.size(), "\r\n\r\n", body));
  }
  void send(std::string_view text) {
    EXPECT_EQ(::send(socket_, text.data(), text.size(), MSG_NOSIGNAL), std::ssize(text));
  }
  // One piece; empty when the server has closed.
  std::string some() {
    char buffer[4096];
    const ssize_t n = ::recv(socket_, buffer, sizeof buffer, 0);
    return n > 0 ? std::string(buffer, static_cast<size_t>(n)) : std::string();
  }
  std::string all() {
    std::string out;
    for (std::string piece; !(piece = some()).empty();) out += piece;
    return out;
  }

 private:
  int socket_;
};

std::string story(int tokens, bool stream) {
  return cat(R"({"prompt": "Once", "ignore_eos": true, "seed": 5, "max_tokens": )", tokens, R"(, "stream": )",
             stream, "}");
}

TEST(Server, ManyClientsOfManyKinds) {
  const auto server = start();
  std::string alone;
  {
    Client client(server->port());
    client.post("/v1/completions", story(12, false));
    alone = client.all();
    ASSERT_TRUE(alone.starts_with("HTTP/1.1 200 ")) << alone;
  }
  const auto text_of = [](const std::string& answer) {
    const size_t from = answer.find("\"choices\"");
    return answer.substr(from, answer.find("\"usage\"") - from);
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 6; ++i) {
        Client client(server->port());
        switch ((t + i) % 4) {
          case 0:
            client.post("/v1/completions", story(12, false));
            EXPECT_EQ(text_of(client.all()), text_of(alone));
            break;
          case 1:
            client.post("/v1/completions", story(12, true));
            EXPECT_NE(client.all().find("data: [DONE]"), std::string::npos);
            break;
          case 2:  // gone in the middle
            client.post("/v1/completions", story(250, true));
            EXPECT_TRUE(client.some().starts_with("HTTP/1.1 200 "));
            break;
          default:
            client.post("/v1/messages", "{");
            EXPECT_TRUE(client.all().starts_with("HTTP/1.1 400 "));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Server, DrainLetsAnswersEnd) {
  const auto server = start();
  Client client(server->port()), idle(server->port());
  client.post("/v1/completions", story(40, true));
  ASSERT_TRUE(client.some().starts_with("HTTP/1.1 200 "));
  std::mutex mutex;
  std::condition_variable ended;
  bool is_idle = false;
  server->drain([&] {
    const std::lock_guard lock(mutex);
    is_idle = true;
    ended.notify_one();
  });
  EXPECT_NE(client.all().find("data: [DONE]"), std::string::npos);
  EXPECT_EQ(idle.all(), "");
  std::unique_lock lock(mutex);
  EXPECT_TRUE(ended.wait_for(lock, std::chrono::seconds(60), [&] { return is_idle; }));
}

TEST(Server, EndsInTheMiddleOfEverything) {
  auto server = start();
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(std::make_unique<Client>(server->port()));
    if (i % 4 == 0) clients.back()->send("POST /v1/comp");
    if (i % 4 == 1) clients.back()->post("/v1/completions", story(250, false));
    if (i % 4 == 2) clients.back()->post("/v1/completions", story(250, true));
  }
  EXPECT_TRUE(clients[2]->some().starts_with("HTTP/1.1 200 "));
  server.reset();
  for (const auto& client : clients) {
    EXPECT_EQ(client->all().find("[DONE]"), std::string::npos);
  }
}

TEST(Server, LimitsConnections) {
  const auto server = start({.max_connections = 3});
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<Client>(server->port()));
    clients.back()->send("GET /health HTTP/1.1\r\n\r\n");
    EXPECT_TRUE(clients.back()->some().starts_with("HTTP/1.1 200 "));
  }
  Client late(server->port());
  EXPECT_EQ(late.all(), "");
}

TEST(Server, SaysWhyItCannotListen) {
  const auto server = start();
  auto second = HttpServer::start({.port = server->port()}, [](auto) {}, {});
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.status().message().find("cannot listen"), std::string::npos);
  EXPECT_FALSE(HttpServer::start({.host = "no such host"}, [](auto) {}, {}).ok());
}

}  // namespace
}  // namespace dsv4::server
