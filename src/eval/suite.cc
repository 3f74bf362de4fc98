#include "eval/suite.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>
#include <utility>

#include "base/str.h"
#include "text/chat_format.h"

namespace dsv4::eval {
namespace {

namespace fs = std::filesystem;
using Paragraphs = std::map<std::string, std::string>;  // number, as its digits -> text

Status wrong_type(std::string_view key, std::string_view wanted, const py::Value* found) {
  return Status(Code::kCorrupt, cat("\"", key, "\": expected ", wanted, ", found ",
                                    found ? found->type_name() : "nothing"));
}

Result<std::string> text_member(const py::Value& row, std::string_view key) {
  const py::Value* v = row.find(key);
  if (!v || !v->if_string()) return wrong_type(key, "a string", v);
  return *v->if_string();
}

// Lines of a file as objects; `use` gets each.
template <class F>
Status each_row(std::string_view text, const std::string& name, F&& use) {
  for (int64_t line = 1; !text.empty(); ++line) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view row = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (row.empty()) continue;
    const auto read = [&]() -> Result<bool> {
      DSV4_ASSIGN(const py::Value value, py::loads(row));
      if (!value.if_object()) {
        return Status(Code::kCorrupt, cat("expected an object, found ", value.type_name()));
      }
      return use(value);
    };
    const Result<bool> more = read();
    if (!more.ok()) return more.status().with_context(cat(name, ": line ", line));
    if (!*more) break;
  }
  return {};
}

Result<Paragraphs> parse_paragraphs(std::string_view text) {
  Paragraphs out;
  DSV4_TRY(each_row(text, "paragraphs.jsonl", [&](const py::Value& row) -> Result<bool> {
    const py::Value* number = row.find("paragraph");
    if (!number || !number->if_int()) return wrong_type("paragraph", "an integer", number);
    DSV4_ASSIGN(out[number->if_int()->digits], text_member(row, "text"));
    return true;
  }));
  return out;
}

// before + parts joined by joiner + after; a part is text or the number of a paragraph.
Result<std::string> assemble(const py::Value& row, const Paragraphs& paragraphs) {
  DSV4_ASSIGN(std::string text, text_member(row, "before"));
  DSV4_ASSIGN(const std::string joiner, text_member(row, "joiner"));
  DSV4_ASSIGN(const std::string after, text_member(row, "after"));
  const py::Value* parts = row.find("parts");
  if (!parts->if_array()) return wrong_type("parts", "an array", parts);
  bool first = true;
  for (const py::Value& part : *parts->if_array()) {
    if (!std::exchange(first, false)) text += joiner;
    if (const std::string* given = part.if_string()) {
      text += *given;
    } else if (const py::Int* number = part.if_int()) {
      const auto found = paragraphs.find(number->digits);
      if (found == paragraphs.end()) {
        return Status(Code::kCorrupt,
                      cat("\"parts\": paragraph ", number->digits, " is not in paragraphs.jsonl"));
      }
      text += found->second;
    } else {
      return wrong_type("parts", "strings and integers", &part);
    }
  }
  return text + after;
}

Result<py::Value::Array> messages_of(const py::Value& row, const Paragraphs& paragraphs) {
  if (row.find("parts")) {
    DSV4_ASSIGN(std::string text, assemble(row, paragraphs));
    return py::Value::Array{
        py::Value::object({{"role", "user"}, {"content", py::Value(std::move(text))}})};
  }
  const py::Value* messages = row.find("messages");
  if (!messages || !messages->if_array()) return wrong_type("messages", "an array", messages);
  return *messages->if_array();
}

Status read_tool(const py::Value& row, py::Value::Array messages, Item& item) {
  const py::Value* call = row.find("expected_call");
  if (!call || !call->if_object()) return wrong_type("expected_call", "an object", call);
  DSV4_ASSIGN(item.tool_name, text_member(*call, "name"));
  const py::Value* arguments = call->find("arguments");
  if (!arguments || !arguments->if_object()) {
    return wrong_type("arguments", "an object", arguments);
  }
  item.tool_arguments = *arguments;
  DSV4_ASSIGN(std::string reasoning, text_member(row, "expected_reasoning"));
  DSV4_ASSIGN(std::string result, text_member(row, "tool_result"));
  const py::Value function = py::Value::object(
      {{"name", py::Value(item.tool_name)}, {"arguments", py::Value(py::dumps(*arguments))}});
  messages.push_back(py::Value::object(
      {{"role", "assistant"},
       {"content", ""},
       {"reasoning_content", py::Value(std::move(reasoning))},
       {"tool_calls", py::Value::array({py::Value::object(
                          {{"id", "call_0"}, {"type", "function"}, {"function", function}})})}}));
  messages.push_back(py::Value::object(
      {{"role", "tool"}, {"tool_call_id", "call_0"}, {"content", py::Value(std::move(result))}}));
  DSV4_ASSIGN(item.answer_prompt, chat::encode(messages, {.thinking_mode = item.thinking}));
  return {};
}

Result<Metric> metric_of(const py::Value& row) {
  DSV4_ASSIGN(const std::string name, text_member(row, "metric"));
  if (name == "exact") return Metric::kExact;
  if (name == "tool") return Metric::kTool;
  if (name == "perplexity") return Metric::kPerplexity;
  return Status(Code::kCorrupt,
                cat("\"metric\": expected exact, tool or perplexity, found \"", name, "\""));
}

Result<Item> parse_item(const py::Value& row, Metric metric, const Paragraphs& paragraphs) {
  Item item;
  DSV4_ASSIGN(item.id, text_member(row, "id"));
  if (metric == Metric::kPerplexity) {
    DSV4_ASSIGN(const std::string text, text_member(row, "text"));
    item.prompt = cat(chat::kBos, text, chat::kEos);
    return item;
  }
  const py::Value* thinking = row.find("thinking");
  if (!thinking || !thinking->if_bool()) return wrong_type("thinking", "true or false", thinking);
  if (*thinking->if_bool()) item.thinking = chat::ThinkingMode::kThinking;
  DSV4_ASSIGN(item.expected, text_member(row, "expected"));
  DSV4_ASSIGN(py::Value::Array messages, messages_of(row, paragraphs));
  DSV4_ASSIGN(item.prompt, chat::encode(messages, {.thinking_mode = item.thinking}));
  if (metric == Metric::kTool) DSV4_TRY(read_tool(row, std::move(messages), item));
  return item;
}

Result<std::string> read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (!file) return Status(Code::kNotFound, cat(path.string(), ": cannot be read"));
  return text.str();
}

}  // namespace

Result<Task> parse_task(std::string_view text, const std::string& name, std::string_view paragraphs,
                        int64_t limit) {
  DSV4_ASSIGN(const Paragraphs shared, parse_paragraphs(paragraphs));
  Task task;
  task.name = name;
  std::optional<Metric> metric;
  DSV4_TRY(each_row(text, name + ".jsonl", [&](const py::Value& row) -> Result<bool> {
    DSV4_ASSIGN(const Metric found, metric_of(row));
    if (metric && *metric != found) {
      return Status(Code::kCorrupt, "\"metric\": expected that of the first line");
    }
    metric = found;
    DSV4_ASSIGN(Item item, parse_item(row, found, shared));
    task.items.push_back(std::move(item));
    return std::ssize(task.items) != limit;
  }));
  if (metric) task.metric = *metric;
  return task;
}

Result<std::vector<Task>> load_suite(const std::string& dir, const SuiteOptions& options) {
  const std::string paragraphs_name = "paragraphs";
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(dir, error)) {
    const std::string name = entry.path().stem().string();
    if (entry.path().extension() == ".jsonl" && name != paragraphs_name) names.push_back(name);
  }
  if (error || names.empty()) {
    return Status(Code::kNotFound,
                  cat(dir, ": expected a folder with held-out sets (*.jsonl)",
                      error ? cat(", found: ", error.message()) : std::string(", found none")));
  }
  std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    return std::pair(a.size(), std::string_view(a)) < std::pair(b.size(), std::string_view(b));
  });
  for (const std::string& wanted : options.tasks) {
    if (std::find(names.begin(), names.end(), wanted) != names.end()) continue;
    std::string known;
    for (const std::string& name : names) known += (known.empty() ? "" : ", ") + name;
    return Status(Code::kNotFound, cat("no task \"", wanted, "\" in ", dir, "; it has ", known));
  }
  std::string paragraphs;
  const fs::path shared = fs::path(dir) / (paragraphs_name + ".jsonl");
  if (fs::exists(shared, error)) {
    DSV4_ASSIGN(paragraphs, read_file(shared));
  }
  std::vector<Task> tasks;
  for (const std::string& name : names) {
    const auto& want = options.tasks;
    if (!want.empty() && std::find(want.begin(), want.end(), name) == want.end()) continue;
    DSV4_ASSIGN(const std::string text, read_file(fs::path(dir) / (name + ".jsonl")));
    auto task = parse_task(text, name, paragraphs, options.limit);
    if (!task.ok()) return task.status().with_context(dir);
    tasks.push_back(std::move(task).value());
  }
  return tasks;
}

}  // namespace dsv4::eval
