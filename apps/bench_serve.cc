// dsv4 bench serve: load on a server.
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>

#include "base/str.h"
#include "bench/serve_load.h"
#include "bench/serve_report.h"
#include "command.h"
#include "progress.h"
#include "text/py_json.h"

namespace dsv4::apps {
namespace {

struct Flags {
  bench::ServeLoad load;
  std::string csv, svg;
  bool json = false, stop_at_eos = false;
};

Status write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) return Status(Code::kIo, cat(path, ": cannot be written"));
  return {};
}

void print_row(const char* name, const bench::Percentiles& p) {
  std::printf("%-22s %9.1f %9.1f %9.1f\n", name, p.p50 * 1e3, p.p90 * 1e3, p.p99 * 1e3);
}

void print_text(const bench::ServeReport& r) {
  std::printf("%lld requests in %.1f s, %lld failed; %.2f requests/s, %.1f output tokens/s\n",
              static_cast<long long>(r.requests), r.seconds, static_cast<long long>(r.failed),
              r.requests_per_second(), r.output_tokens_per_second());
  std::printf("%lld prompt tokens, %.1f %% of them from the cache; %lld output tokens\n\n",
              static_cast<long long>(r.prompt_tokens), r.hit_rate() * 100,
              static_cast<long long>(r.completion_tokens));
  std::printf("%-22s %9s %9s %9s\n", "milliseconds", "p50", "p90", "p99");
  print_row("time to first token", r.first_token);
  print_row("between tokens", r.gap);
  print_row("whole answer", r.whole);
}

py::Value percentiles_json(const bench::Percentiles& p) {
  return py::Value::object({{"p50", p.p50}, {"p90", p.p90}, {"p99", p.p99}});
}

void print_json(const bench::ServeReport& r) {
  const auto integer = [](int64_t x) { return py::Value(py::Int{std::to_string(x)}); };
  const py::Value out =
      py::Value::object({{"requests", integer(r.requests)},
                         {"failed", integer(r.failed)},
                         {"seconds", r.seconds},
                         {"requests_per_second", r.requests_per_second()},
                         {"output_tokens_per_second", r.output_tokens_per_second()},
                         {"prompt_tokens", integer(r.prompt_tokens)},
                         {"cached_tokens", integer(r.cached_tokens)},
                         {"completion_tokens", integer(r.completion_tokens)},
                         {"hit_rate", r.hit_rate()},
                         {"first_token_seconds", percentiles_json(r.first_token)},
                         {"inter_token_seconds", percentiles_json(r.gap)},
                         {"answer_seconds", percentiles_json(r.whole)}});
  std::printf("%s\n", py::dumps(out).c_str());
}

Status run(Flags f, int& exit_code) {
  f.load.ignore_eos = !f.stop_at_eos;
  const ProgressSink progress = terminal_progress();
  DSV4_ASSIGN(const auto samples, bench::run_serve_load(f.load, [&](int64_t done) {
                if (progress) {
                  progress({.stage = "bench serve", .done = done, .total = f.load.requests, .unit = "requests"});
                }
              }));
  const bench::ServeReport report = bench::summarise(samples);
  if (f.json) {
    print_json(report);
  } else {
    print_text(report);
  }
  for (const bench::ServeSample& s : samples) {
    if (s.error.empty()) continue;
    std::fprintf(stderr, "dsv4: the first failure: %s\n", s.error.c_str());
    exit_code = kExitFailed;
    break;
  }
  if (!f.csv.empty()) DSV4_TRY(write_file(f.csv, bench::to_csv(samples)));
  if (!f.svg.empty()) {
    DSV4_TRY(write_file(f.svg, bench::to_svg(samples, cat(f.load.url, ", ", report.requests, " requests"))));
  }
  return {};
}

}  // namespace

void add_bench_serve(Command bench, int& exit_code) {
  auto f = std::make_shared<Flags>();
  bench::ServeLoad& load = f->load;
  Command c = bench.subcommand("serve", "Load on a server that speaks OpenAI's chat API");
  c.option("--url", load.url, "The server, with or without /v1").show_default();
  c.option("--api-key", load.api_key, "Its key");
  c.option("--model", load.model, "Default: the first one that it lists");
  c.option("-n,--requests", load.requests, "Requests in all").positive().show_default();
  c.option("-c,--concurrency", load.concurrency,
           "Requests at a time (default: 8, or no limit with --rate)")
      .positive();
  c.option("--rate", load.rate,
           "Arrivals per second at random times (Poisson) instead of a fixed concurrency")
      .positive();
  c.option("--turns", load.turns,
           "Turns of each conversation: agents, whose prompts begin as the one before")
      .positive()
      .show_default();
  c.option("--prompt-words", load.prompt_words, "Words of a message").positive().show_default();
  c.option("--shared-words", load.shared_words,
           "Words of a system message that all conversations share")
      .not_negative()
      .show_default();
  c.option("--output-tokens", load.output_tokens, "Tokens of an answer").positive().show_default();
  c.flag("--stop-at-eos", f->stop_at_eos, "Let answers end by themselves");
  c.option("--seed", load.seed, "Of prompts and arrivals").show_default();
  c.option("--timeout", load.timeout_seconds, "Seconds of one request").positive().show_default();
  c.option("--csv", f->csv, "Also one line for each request, into this file");
  c.option("--svg", f->svg, "Also a plot of the times, into this file");
  c.flag("--json", f->json, "The figures as JSON");
  c.footer(
      "A token is a piece of the stream; times are those of the client. Exit code 1 if a request "
      "failed.\n\n"
      "  dsv4 bench serve --url http://127.0.0.1:8000 -c 32 -n 256\n"
      "  dsv4 bench serve --rate 5 -n 500 --csv requests.csv --svg times.svg\n"
      "  dsv4 bench serve --turns 8 --shared-words 500 -c 4 -n 64");
  c.run([f, &exit_code] {
    const Status status = run(*f, exit_code);
    if (!status.ok()) exit_code = fail(status);
  });
}

}  // namespace dsv4::apps
