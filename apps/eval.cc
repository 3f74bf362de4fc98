// dsv4 eval: held-out sets through the engine.
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/str.h"
#include "command.h"
#include "eval/evaluate.h"
#include "progress.h"

namespace dsv4::apps {
namespace {

using nlohmann::ordered_json;

struct Options {
  std::string model, device = "auto", cache_rows = "auto", suite = "demo", data;
  eval::SuiteOptions sets;
  eval::EvalOptions engine;
  std::vector<std::string> require;
  bool json = false, show_misses = false;
};

void print_json(const eval::Report& report) {
  ordered_json out;
  out["backend"] = report.backend;
  out["tasks"] = ordered_json::array();
  for (const eval::TaskReport& t : report.tasks) {
    ordered_json task = {{"task", t.task}, {"items", t.items}};
    for (const eval::Figure& f : t.figures) task["figures"][f.name] = f.value;
    task["prompt_tokens"] = t.prompt_tokens;
    task["completion_tokens"] = t.completion_tokens;
    task["seconds"] = t.seconds;
    task["misses"] = ordered_json::array();
    for (const eval::Miss& m : t.misses) {
      task["misses"].push_back({{"id", m.id}, {"expected", m.expected}, {"found", m.found}});
    }
    out["tasks"].push_back(std::move(task));
  }
  std::printf("%s\n", out.dump(1, ' ', false, ordered_json::error_handler_t::replace).c_str());
}

Status run(const Options& o, int& exit_code) {
  std::vector<eval::Requirement> requirements;
  for (const std::string& text : o.require) {
    auto requirement = eval::parse_requirement(text);
    if (!requirement.ok()) return requirement.status().with_context("--require");
    requirements.push_back(std::move(requirement).value());
  }
  DSV4_ASSIGN(const std::vector<eval::Task> tasks,
              eval::load_suite(o.data.empty() ? o.model + "/eval" : o.data, o.sets));
  DSV4_ASSIGN(const Tokenizer tokenizer, Tokenizer::load(o.model + "/tokenizer.json"));
  const ProgressSink progress = terminal_progress();
  DSV4_ASSIGN(const LoadedModel loaded, load_model(o.model, o.device, progress, o.cache_rows));
  DSV4_ASSIGN(const eval::Report report,
              eval::evaluate(loaded, loaded.backend->ops(), tokenizer, tasks, o.engine, progress));
  if (o.json) {
    print_json(report);
  } else {
    std::fputs(eval::to_text(report).c_str(), stdout);
    for (const eval::TaskReport& t : report.tasks) {
      if (!o.show_misses) break;
      for (const eval::Miss& m : t.misses) {
        std::printf("\n%s\n  expected: %s\n  found:    %s\n", m.id.c_str(), m.expected.c_str(),
                    m.found.c_str());
      }
    }
  }
  const std::vector<std::string> failures = eval::unmet(report, requirements);
  for (const std::string& line : failures) std::fprintf(stderr, "dsv4: %s\n", line.c_str());
  exit_code = failures.empty() ? kExitOk : kExitFailed;
  return {};
}

}  // namespace

void add_eval(Command app, int& exit_code) {
  auto o = std::make_shared<Options>();
  Command cmd = app.subcommand("eval", "Measure a model on held-out sets");
  cmd.option("-m,--model", o->model, "Folder of the checkpoint").required();
  cmd.option("--suite", o->suite, "Which sets: demo = DIR/eval/*.jsonl of the model's folder")
      .one_of({"demo"})
      .show_default();
  cmd.option("--data", o->data, "Another folder of sets in the same format");
  cmd.option("--tasks", o->sets.tasks, "Only these sets: copy,recall_1k,...").delimiter(',');
  cmd.option("--limit", o->sets.limit, "Only the first N items of each set").positive();
  cmd.option("--require", o->require,
             "TASK.FIGURE>=NUMBER or <=: exit code 1 unless it holds; may be repeated");
  cmd.flag("--json", o->json, "One JSON object instead of the table");
  cmd.flag("--misses", o->show_misses, "Also print the replies that were wrong");
  cmd.option("--device", o->device, "Backend: auto, or a name that `dsv4 version` lists")
      .show_default();
  add_cache_rows(cmd, o->cache_rows);
  cmd.option("--sequences", o->engine.max_sequences, "Items decoded together")
      .range(1, 1024)
      .show_default();
  cmd.option("--chunk", o->engine.prefill_chunk, "Prompt tokens per step")
      .range(1, 65536)
      .show_default();
  cmd.footer(
      "Answers are decoded greedily by the engine and compared with the expected ones; texts are\n"
      "scored by teacher forcing, with the share of MTP drafts that greedy decoding would accept.\n"
      "A table (or JSON) goes to standard output, progress to standard error. The exit code says\n"
      "whether it ran and whether every --require holds, not how good the model is.\n\n"
      "  dsv4 eval -m models/demo\n"
      "  dsv4 eval -m models/demo --tasks story,sums --limit 20 --json\n"
      "  dsv4 eval -m models/demo --tasks recall_1k --require 'recall_1k.accuracy>=0.98'");
  cmd.run([o, &exit_code] {
    const Status status = run(*o, exit_code);
    if (!status.ok()) exit_code = fail(status);
  });
}

}  // namespace dsv4::apps
