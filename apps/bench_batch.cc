// dsv4 bench batch: the engine with streams side by side, and where a step's time goes.
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "bench/engine_bench.h"
#include "command.h"
#include "progress.h"

namespace dsv4::apps {
namespace {

struct Flags {
  bench::EngineBenchOptions bench;
  bool json = false;
};

Status run_batch(const Flags& f) {
  DSV4_ASSIGN(const bench::EngineBenchResult result, bench_engine(f.bench, terminal_progress()));
  if (f.json) {
    nlohmann::ordered_json j = {{"device", result.device},
                                {"runs", nlohmann::ordered_json::array()}};
    for (const bench::EngineBenchRun& r : result.runs) {
      j["runs"].push_back({{"streams", r.streams},
                           {"steps", r.steps},
                           {"seconds", r.seconds},
                           {"tokens_per_s", r.tokens_per_s},
                           {"forward", r.forward},
                           {"sample", r.sample},
                           {"schedule", r.schedule},
                           {"sinks", r.sinks}});
    }
    std::printf("%s\n", j.dump(2).c_str());
    return {};
  }
  std::printf("device  %s\n\n", result.device.c_str());
  std::printf("%7s %9s %8s %9s   %8s %8s %9s %6s\n", "streams", "tok/s", "of first", "step ms",
              "forward", "sample", "schedule", "sinks");
  for (const bench::EngineBenchRun& r : result.runs) {
    std::printf("%7lld %9.1f %7.2fx %9.2f   %7.2f%% %7.2f%% %8.2f%% %5.2f%%\n",
                static_cast<long long>(r.streams), r.tokens_per_s,
                r.tokens_per_s / result.runs[0].tokens_per_s,
                1e3 * r.seconds / static_cast<double>(r.steps), 100 * r.forward, 100 * r.sample,
                100 * r.schedule, 100 * r.sinks);
  }
  return {};
}

}  // namespace

void add_bench_batch(Command bench, int& exit_code) {
  auto f = std::make_shared<Flags>();
  Command cmd = bench.subcommand("batch", "The engine with streams side by side");
  cmd.option("-m,--model", f->bench.engine.model_dir, "Folder of the checkpoint").required();
  cmd.option("--device", f->bench.engine.device, "Backend").show_default();
  add_cache_rows(cmd, f->bench.engine.cache_rows);
  cmd.option("--streams", f->bench.streams, "Requests at one time; a run for each")
      .delimiter(',')
      .range(1, 4096)
      .show_default();
  cmd.option("--prompt", f->bench.prompt, "Tokens of each prompt").range(1, 1 << 20).show_default();
  cmd.option("--tokens", f->bench.tokens, "Tokens of each answer").range(2, 1 << 16).show_default();
  cmd.option("--chunk", f->bench.engine.prefill_chunk, "Prompt rows of one step")
      .range(1, 1 << 16)
      .show_default();
  cmd.option("--temperature", f->bench.temperature, "0 = always the most likely token")
      .not_negative()
      .show_default();
  cmd.flag("--json", f->json, "JSON on standard output");
  cmd.footer("Example: dsv4 bench batch -m models/demo --streams 1,32,64");
  cmd.run([f, &exit_code] {
    const Status status = run_batch(*f);
    exit_code = status.ok() ? kExitOk : fail(status);
  });
}

}  // namespace dsv4::apps
