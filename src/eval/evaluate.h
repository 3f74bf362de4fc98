// Held-out sets through the engine: greedy decoding for what is answered, teacher forcing for
// texts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "api/loaded_model.h"
#include "base/log.h"
#include "dsv4/status.h"
#include "eval/suite.h"
#include "ops/op_table.h"
#include "text/tokenizer.h"

namespace dsv4::eval {

struct EvalOptions {
  int64_t max_sequences = 8;    // decoded together
  int64_t prefill_chunk = 256;  // prompt rows of one step
};

struct Figure {
  std::string name;  // accuracy; parsed, arguments, answer; perplexity, mtp_acceptance
  double value = 0;
  int64_t count = 0;  // items, or for texts tokens, that it is taken over
};

struct Miss {
  std::string id, expected, found;
};

struct TaskReport {
  std::string task;
  int64_t items = 0;
  int64_t prompt_tokens = 0, completion_tokens = 0;  // completion: 0 for texts
  double seconds = 0;
  std::vector<Figure> figures;
  std::vector<Miss> misses;  // replies that were not what was expected
};

struct Report {
  std::string backend;  // one line
  std::vector<TaskReport> tasks;
};

// `ops` is the table to run on: loaded.backend->ops(), or a wrapper of it. An answer may be 32
// tokens longer than the expected one before it is cut, and then counts as wrong.
Result<Report> evaluate(const LoadedModel& loaded, const OpTable& ops, const Tokenizer& tokenizer,
                        const std::vector<Task>& tasks, const EvalOptions& options,
                        const ProgressSink& progress);

// "task.figure", e.g. recall_1k.accuracy; nullptr where the report has none of that name.
const Figure* find_figure(const Report& report, std::string_view name);

// A limit on a figure, as "recall_1k.accuracy>=0.98" or "story.perplexity<=1.46".
struct Requirement {
  std::string figure;
  bool at_least = true;
  double limit = 0;
};
Result<Requirement> parse_requirement(std::string_view text);
// One line for each that is not met. An absent figure is not met, a NaN neither.
std::vector<std::string> unmet(const Report& report, const std::vector<Requirement>& requirements);

// A table for people, several lines, each ended.
std::string to_text(const Report& report);

// Used by evaluate(): texts through forward() and forward_mtp().
Status score_texts(const LoadedModel& loaded, const OpTable& ops,
                   const std::vector<std::vector<int32_t>>& texts, TaskReport& report,
                   const ProgressSink& progress);

}  // namespace dsv4::eval
