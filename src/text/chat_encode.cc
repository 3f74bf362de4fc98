#include <algorithm>

#include "base/str.h"
#include "text/chat.h"
#include "text/chat_format.h"
#include "text/chat_preprocess.h"

namespace dsv4::chat {
namespace {

class Printer {
 public:
  Printer(const std::vector<Message>& messages, bool thinking, bool drop)
      : messages_(messages), last_(last_user_index(messages)), thinking_(thinking), drop_(drop) {}

  Status print(size_t index) {
    const Message& m = messages_[index];
    if (m.role == "system") {
      DSV4_TRY(text(m, "content", false));
      DSV4_TRY(suffixes(m));
    } else if (m.role == "developer") {
      out_ += kUser;
      const py::Value* content = m.find("content");
      if (!content || !content->truthy()) {
        return wrong(m, "content", "a string that is not empty", content);
      }
      DSV4_TRY(text(m, "content", false));
      DSV4_TRY(suffixes(m));
    } else if (m.role == "user") {
      DSV4_TRY(user(m));
    } else if (m.role == "latest_reminder") {
      out_ += kLatestReminder;
      DSV4_TRY(text(m, "content", true));
    } else if (m.role == "assistant") {
      DSV4_TRY(assistant(m, index));
    } else {
      const py::Value role(m.role);
      return wrong(m, "role", "system, developer, user, assistant, tool or latest_reminder", &role);
    }
    return transition(m, index);
  }

  std::string take() { return std::move(out_); }
  void put(std::string_view text) { out_ += text; }

 private:
  static std::string where(const Message& m, std::string_view field) {
    return cat("messages[", m.index, "].", field);
  }

  static Status wrong(const Message& m, std::string_view field, std::string_view expected,
                      const py::Value* found) {
    std::string what = "nothing";
    if (found) {
      const bool brief = !found->if_array() && !found->if_object();
      what = brief ? py::dumps(*found) : std::string(found->type_name());
      if (what.size() > 60) what = found->type_name();
    }
    return Status(Code::kInvalidArgument,
                  cat(where(m, field), ": expected ", expected, ", found ", what));
  }

  // A member as text. What is absent or null prints nothing, or None where the original formats it
  // instead of testing it.
  Status text(const Message& m, std::string_view key, bool prints_none) {
    const py::Value* value = m.find(key);
    if (!prints_none && (!value || !value->truthy())) return {};
    return formatted(m, key, value);
  }

  Status formatted(const Message& m, std::string_view field, const py::Value* value) {
    auto printed = py::str(value ? *value : py::Value());
    if (!printed.ok()) return wrong(m, field, "a string", value);
    out_ += *printed;
    return {};
  }

  Status suffixes(const Message& m) {
    const py::Value* tools = m.find("tools");
    if (tools && tools->truthy()) {
      if (!tools->if_array()) return wrong(m, "tools", "an array", tools);
      out_.append("\n\n").append(kToolsBeforeSchemas);
      const py::Value::Array& list = *tools->if_array();
      for (size_t i = 0; i < list.size(); ++i) {
        const py::Value* function = list[i].find("function");
        if (!function) return wrong(m, cat("tools[", i, "].function"), "an object", function);
        if (i > 0) out_ += '\n';
        py::dump_to(out_, *function);
      }
      out_ += kToolsAfterSchemas;
    }
    const py::Value* format = m.find("response_format");
    if (format && format->truthy()) {
      out_.append("\n\n").append(kResponseFormat);
      py::dump_to(out_, *format);
    }
    return {};
  }

  Status user(const Message& m) {
    out_ += kUser;
    for (const Block& block : m.blocks) {
      if (&block != m.blocks.data()) out_ += "\n\n";
      if (!block.is_tool_result) {
        if (!block.content) continue;
        if (!block.content->if_string()) return wrong(m, "content", "a string", block.content);
        out_ += *block.content->if_string();
        continue;
      }
      out_ += kToolResultBegin;
      DSV4_TRY(tool_result(m, block));
      out_ += kToolResultEnd;
    }
    return {};
  }

  Status tool_result(const Message& m, const Block& block) {
    if (!block.content) return {};
    const py::Value::Array* parts = block.content->if_array();
    if (!parts) return formatted(m, "content (of a tool message)", block.content);
    for (const py::Value& part : *parts) {
      if (&part != parts->data()) out_ += "\n\n";
      if (!part.if_object()) return wrong(m, "content[]", "an object with a type", &part);
      const py::Value* type = part.find("type");
      const bool is_text = type && type->if_string() && *type->if_string() == "text";
      if (is_text) {
        const py::Value* value = part.find("text");
        if (!value) continue;
        if (!value->if_string()) return wrong(m, "content[].text", "a string", value);
        out_ += *value->if_string();
      } else {
        out_ += "[Unsupported ";
        DSV4_TRY(formatted(m, "content[].type", type));
        out_ += ']';
      }
    }
    return {};
  }

  Status assistant(const Message& m, size_t index) {
    const bool follows_task = index > 0 && messages_[index - 1].find_set("task");
    const bool kept = !drop_ || static_cast<std::ptrdiff_t>(index) > last_;
    if (thinking_ && !follows_task && kept) {
      DSV4_TRY(text(m, "reasoning_content", false));
      out_ += kThinkEnd;
    }
    DSV4_TRY(text(m, "content", false));
    const py::Value* calls = m.find("tool_calls");
    if (calls && calls->truthy()) {
      if (!calls->if_array()) return wrong(m, "tool_calls", "an array", calls);
      DSV4_TRY(tool_calls(m, *calls->if_array()));
    }
    const py::Value* without_eos = m.find("wo_eos");
    if (!without_eos || !without_eos->truthy()) out_ += kEos;
    return {};
  }

  Status tool_calls(const Message& m, const py::Value::Array& calls) {
    out_.append(kToolCallsBegin).append(">\n");
    for (size_t i = 0; i < calls.size(); ++i) {
      const std::string field = cat("tool_calls[", i, "].function");
      const py::Value* function = calls[i].find("function");
      const py::Value* name = function ? function->find("name") : nullptr;
      const py::Value* arguments = function ? function->find("arguments") : nullptr;
      if (!name) return wrong(m, field + ".name", "a string", name);
      if (!arguments) return wrong(m, field + ".arguments", "JSON text of an object", arguments);
      out_.append(kInvokeBegin).append(" name=\"");
      DSV4_TRY(formatted(m, field + ".name", name));
      out_ += "\">\n";
      DSV4_TRY(parameters(m, field + ".arguments", *arguments));
      out_.append("\n").append(kInvokeEnd).append(">\n");
    }
    out_ += kToolCallsEnd;
    return {};
  }

  Status parameters(const Message& m, const std::string& field, const py::Value& arguments) {
    py::Value parsed;
    bool is_json = false;
    if (const std::string* json = arguments.if_string()) {
      auto read = py::loads(*json);
      is_json = read.ok();
      if (is_json) parsed = std::move(read).value();
      // JSON that the original reads and we cannot express must not pass for something else.
      if (!is_json && read.status().code() != Code::kCorrupt) {
        return read.status().with_context(where(m, field));
      }
    }
    if (!is_json) parsed = py::Value::object({{"arguments", arguments}});
    if (!parsed.if_object()) return wrong(m, field, "JSON text of an object", &parsed);
    for (const py::Member& member : *parsed.if_object()) {
      if (&member != parsed.if_object()->data()) out_ += '\n';
      const std::string* raw = member.value.if_string();
      out_.append(kParameterBegin).append(" name=\"").append(member.key);
      out_.append("\" string=\"").append(raw ? "true" : "false").append("\">");
      if (raw) {
        out_ += *raw;
      } else {
        py::dump_to(out_, member.value);
      }
      out_.append(kParameterEnd).append(">");
    }
    return {};
  }

  // What leads from this message to the assistant's next words.
  Status transition(const Message& m, size_t index) {
    if (index + 1 < messages_.size()) {
      const std::string& next = messages_[index + 1].role;
      if (next != "assistant" && next != "latest_reminder") return {};
    }
    if (const py::Value* task = m.find_set("task")) {
      const auto* known = std::find_if(std::begin(kTasks), std::end(kTasks), [&](const Task& t) {
        return task->if_string() && *task->if_string() == t.name;
      });
      if (known == std::end(kTasks)) {
        return wrong(m, "task", "action, query, authority, domain, title or read_url", task);
      }
      if (known->name == "action")
        out_.append(kAssistant).append(thinking_ ? kThinkBegin : kThinkEnd);
      out_ += known->token;
    } else if (m.role == "user" || m.role == "developer") {
      const bool kept = !drop_ || static_cast<std::ptrdiff_t>(index) >= last_;
      out_.append(kAssistant).append(thinking_ && kept ? kThinkBegin : kThinkEnd);
    }
    return {};
  }

  const std::vector<Message>& messages_;
  const std::ptrdiff_t last_;
  const bool thinking_;
  const bool drop_;
  std::string out_;
};

}  // namespace

Result<ThinkingMode> parse_thinking_mode(std::string_view name) {
  if (name == "chat") return ThinkingMode::kChat;
  if (name == "thinking") return ThinkingMode::kThinking;
  return Status(Code::kInvalidArgument,
                cat("thinking_mode: expected \"chat\" or \"thinking\", found \"", name, "\""));
}

Result<std::string> encode(const py::Value::Array& messages, const EncodeOptions& options) {
  const auto& effort = options.reasoning_effort;
  if (effort && *effort != "high" && *effort != "max") {
    return Status(
        Code::kInvalidArgument,
        cat("reasoning_effort: expected null, \"high\" or \"max\", found \"", *effort, "\""));
  }
  std::vector<Message> all;
  if (options.context) {
    auto context = preprocess(*options.context);
    if (!context.ok()) return context.status().with_context("context");
    all = std::move(context).value();
  }
  const size_t context_size = all.size();
  DSV4_ASSIGN(std::vector<Message> fresh, preprocess(messages));
  std::move(fresh.begin(), fresh.end(), std::back_inserter(all));

  const bool thinking = options.thinking_mode == ThinkingMode::kThinking;
  const bool any_tools = std::any_of(all.begin(), all.end(), [](const Message& m) {
    const py::Value* tools = m.find("tools");
    return tools && tools->truthy();
  });
  const bool drop = options.drop_thinking && !any_tools;
  for (size_t i = 0; i < all.size(); ++i) all[i].is_context = i < context_size;
  if (thinking && drop) drop_earlier_thinking(all);

  const bool begins = !options.context || options.context->empty();
  Printer printer(all, thinking, drop);
  if (begins && options.add_default_bos_token) printer.put(kBos);
  if (begins && !all.empty() && thinking && effort == "max") printer.put(kEffortMax);
  for (size_t i = 0; i < all.size(); ++i) {
    if (!all[i].is_context) DSV4_TRY(printer.print(i));
  }
  return printer.take();
}

py::Value::Array attach_tools(py::Value::Array messages, py::Value tools) {
  const py::Value* role = messages.empty() ? nullptr : messages.front().find("role");
  const std::string* name = role ? role->if_string() : nullptr;
  if (!name || (*name != "system" && *name != "developer")) {
    messages.insert(messages.begin(), py::Value::object({{"role", "system"}, {"content", ""}}));
  }
  messages.front().set("tools", std::move(tools));
  return messages;
}

}  // namespace dsv4::chat
