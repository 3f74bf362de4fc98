// dsv4 serve: the model behind HTTP.
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include "base/str.h"
#include "command.h"
#include "progress.h"
#include "server/server.h"

namespace dsv4::apps {
namespace {

struct Options {
  EngineOptions engine;
  server::ApiOptions api;
  server::HttpServerOptions http;
  int64_t header_timeout = 10, body_timeout = 60, idle_timeout = 120, max_body_mb = 32;
  bool quiet = false;
};

// SIGINT and SIGTERM as something to wait for, beside the end of the last request.
class Signals {
 public:
  Signals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGINT);
    sigaddset(&set_, SIGTERM);
    // Threads started later inherit this: no other thread is interrupted.
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    signal_ = signalfd(-1, &set_, SFD_CLOEXEC);
    idle_ = eventfd(0, EFD_CLOEXEC);
  }
  ~Signals() {
    ::close(signal_);
    ::close(idle_);
    pthread_sigmask(SIG_UNBLOCK, &set_, nullptr);
  }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  void tell_idle() {
    const uint64_t one = 1;
    (void)!::write(idle_, &one, sizeof one);
  }
  // True for a signal, false when tell_idle() was called.
  bool wait() {
    pollfd fds[2] = {{signal_, POLLIN, 0}, {idle_, POLLIN, 0}};
    while (::poll(fds, 2, -1) < 0) {
    }
    if (!(fds[0].revents & POLLIN)) return false;
    signalfd_siginfo info;
    (void)!::read(signal_, &info, sizeof info);
    return true;
  }

 private:
  sigset_t set_;
  int signal_ = -1, idle_ = -1;
};

// Each connection is a file descriptor.
void raise_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)setrlimit(RLIMIT_NOFILE, &limit);
}

std::string default_name(const std::string& model_dir) {
  std::error_code error;
  const auto path = std::filesystem::weakly_canonical(model_dir, error);
  const std::string name = (error ? std::filesystem::path(model_dir) : path).filename().string();
  return name.empty() ? "dsv4" : name;
}

Status run(Options o) {
  Signals signals;
  raise_file_limit();
  if (o.api.model_name.empty()) o.api.model_name = default_name(o.engine.model_dir);
  if (o.api.api_keys.empty()) {
    if (const char* key = std::getenv("DSV4_API_KEY"); key && *key) o.api.api_keys = {key};
  }
  o.http.header_timeout = std::chrono::seconds(o.header_timeout);
  o.http.body_timeout = std::chrono::seconds(o.body_timeout);
  o.http.idle_timeout = std::chrono::seconds(o.idle_timeout);
  o.http.max_body_bytes = static_cast<uint64_t>(o.max_body_mb) << 20;
  if (const ProgressSink sink = terminal_progress()) {
    o.engine.progress = [sink](const LoadProgress& p) { sink({p.stage, p.done, p.total, p.unit}); };
  }
  if (!o.quiet) {
    o.engine.on_plan = [](const MemoryPlan& plan) { std::fputs(to_text(plan).c_str(), stderr); };
  }
  DSV4_ASSIGN(Tokenizer tokenizer, Tokenizer::load(o.engine.model_dir + "/tokenizer.json"));
  DSV4_ASSIGN(auto engine, Engine::load(o.engine));
  if (const ModelInfo& info = engine->info(); !o.quiet && info.recorded_steps > 0) {
    std::fprintf(stderr, "dsv4: %lld sizes of step recorded in %.2f s\n",
                 static_cast<long long>(info.recorded_steps), info.warm_up_seconds);
  }
  DSV4_ASSIGN(auto server, server::Server::start(o.api, o.http, std::move(engine),
                                                 std::move(tokenizer)));
  // On standard output: a script that asked for port 0 reads the port here.
  std::printf("dsv4: serving %s on http://%s:%d\n", o.api.model_name.c_str(), o.http.host.c_str(),
              server->port());
  std::fflush(stdout);
  signals.wait();
  if (!o.quiet) {
    std::fputs("dsv4: finishing what runs; once more stops at once\n", stderr);
  }
  server->drain([&signals] { signals.tell_idle(); });
  if (signals.wait() && !o.quiet) std::fputs("dsv4: stopped\n", stderr);
  return {};
}

}  // namespace

void add_serve(Command app, int& exit_code) {
  auto o = std::make_shared<Options>();
  Command c = app.subcommand("serve", "Answer over HTTP: OpenAI's and Anthropic's APIs");
  c.option("-m,--model", o->engine.model_dir, "Folder of the checkpoint").required();
  c.option("--host", o->http.host, "Address to listen on; 0.0.0.0 = all").show_default();
  o->http.port = 8000;
  c.option("--port", o->http.port, "Port; 0 = any free one, printed on standard output")
      .show_default();
  c.option("--model-name", o->api.model_name, "Name in the API (default: the folder's name)");
  c.option("--api-key", o->api.api_keys,
           "Ask for this key; may be repeated (default: $DSV4_API_KEY, or none)");
  c.option("--thinking", o->api.thinking, "Where a request does not say: off, high or max")
      .one_of({"off", "high", "max"})
      .show_default();
  c.flag("-q,--quiet", o->quiet, "No memory plan, no messages");

  const char* const engine = "Engine";
  c.option("--device", o->engine.device, "Backend: auto, or a name that `dsv4 version` lists")
      .show_default()
      .group(engine);
  add_cache_rows(c, o->engine.cache_rows).group(engine);
  c.option("--ctx", o->engine.context,
           "Longest prompt and answer together, in tokens (default: 8192)")
      .positive()
      .group(engine);
  o->engine.max_sequences = 32;
  o->engine.prefix.enabled = true;
  c.option("--max-sequences", o->engine.max_sequences, "Answers computed at the same time")
      .positive()
      .show_default()
      .group(engine);
  c.option("--cache-tokens", o->engine.cache_tokens,
           "Tokens that the cache holds, over all sequences (default: ctx * max-sequences)")
      .positive()
      .group(engine);
  c.option("--max-queue", o->engine.max_queue, "Requests that may wait; more are refused with 429")
      .positive()
      .show_default()
      .group(engine);
  c.flag("--prefix-cache,!--no-prefix-cache", o->engine.prefix.enabled,
         "Keep prompts for requests that begin the same way")
      .group(engine);
  c.option("--cache-dir", o->engine.prefix.disk_dir,
           "Folder for the part of the prefix cache that survives a restart")
      .group(engine);
  c.option("--chunk", o->engine.prefill_chunk, "Prompt tokens per step")
      .positive()
      .show_default()
      .group(engine);

  const char* const limits = "Limits";
  c.option("--threads", o->http.threads, "I/O threads").range(1, 64).show_default().group(limits);
  c.option("--max-connections", o->http.max_connections, "Open connections")
      .positive()
      .show_default()
      .group(limits);
  c.option("--max-body", o->max_body_mb, "Largest request, in MiB")
      .range(1, 4096)
      .show_default()
      .group(limits);
  c.option("--header-timeout", o->header_timeout, "Seconds a client has to send a header")
      .positive()
      .show_default()
      .group(limits);
  c.option("--body-timeout", o->body_timeout, "Seconds it has to send a body")
      .positive()
      .show_default()
      .group(limits);
  c.option("--idle-timeout", o->idle_timeout, "Seconds a connection may wait between requests")
      .positive()
      .show_default()
      .group(limits);
  c.option("--cors-origin", o->api.cors_origin,
           "Let pages of this origin call the API from a browser; * = of any")
      .group(limits);
  c.footer(
      "Ctrl-C finishes what runs and takes no more; a second one stops at once. There is no TLS: "
      "put\n"
      "a proxy in front where the network is not yours. docs/SERVING.md has the endpoints.\n\n"
      "  dsv4 serve -m models/demo --port 8000\n"
      "  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\\n"
      "    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Tell me a story about a "
      "fox.\"}]}'");
  c.run([o, &exit_code] {
    const Status status = run(*o);
    exit_code = status.ok() ? kExitOk : fail(status);
  });
}

}  // namespace dsv4::apps
