// A suite of held-out sets: JSON lines as tools/demo_model/README.md describes them, turned into
// prompts and what the model has to answer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dsv4/status.h"
#include "text/chat.h"
#include "text/py_json.h"

namespace dsv4::eval {

enum class Metric : uint8_t {
  kExact,       // the reply's content is `expected`
  kTool,        // the reply is one call, `expected` follows its result
  kPerplexity,  // of `text`
};

struct Item {
  std::string id;
  chat::ThinkingMode thinking = chat::ThinkingMode::kChat;
  std::string prompt;    // formatted; the whole text for kPerplexity
  std::string expected;  // content of the (last) reply
  // kTool: the call, and the prompt that follows it with the expected call and its result.
  std::string tool_name;
  py::Value tool_arguments;
  std::string answer_prompt;
};

struct Task {
  std::string name;
  Metric metric = Metric::kExact;
  std::vector<Item> items;
};

struct SuiteOptions {
  std::vector<std::string> tasks;  // names to take; empty = all
  int64_t limit = -1;              // first items of each task, at least 1; -1 = all
};

// Every set `dir`/*.jsonl, short names first, then by name: recall_1k before recall_16k.
// kNotFound: no such folder, or a task that no file holds. Errors in a set name file and line.
Result<std::vector<Task>> load_suite(const std::string& dir, const SuiteOptions& options);

// One set from its text; `name` stands for the file in messages. `paragraphs` is the text of the
// paragraph file that `parts` refer to, empty where there is none.
Result<Task> parse_task(std::string_view text, const std::string& name, std::string_view paragraphs,
                        int64_t limit);

}  // namespace dsv4::eval
