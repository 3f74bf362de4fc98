#include "base/str.h"
#include "command.h"
#include "json_lines.h"
#include "text/chat.h"

namespace dsv4::apps {
namespace {

Result<py::Value::Array> array_member(const py::Value& request, std::string_view key) {
  const py::Value* value = request.find(key);
  if (!value || !value->if_array()) {
    return Status(Code::kInvalidArgument,
                  cat("\"", key, "\": expected an array of messages, found ",
                      value ? value->type_name() : "nothing"));
  }
  return *value->if_array();
}

Result<bool> bool_member(const py::Value& request, std::string_view key, bool otherwise) {
  const py::Value* value = request.find(key);
  if (!value) return otherwise;
  if (const bool* flag = value->if_bool()) return *flag;
  return Status(Code::kInvalidArgument,
                cat("\"", key, "\": expected true or false, found ", value->type_name()));
}

Result<py::Value> encode_line(const py::Value& request) {
  chat::EncodeOptions options;
  DSV4_ASSIGN(py::Value::Array messages, array_member(request, "messages"));
  DSV4_ASSIGN(const std::string mode, string_member(request, "thinking_mode"));
  DSV4_ASSIGN(options.thinking_mode, chat::parse_thinking_mode(mode));
  DSV4_ASSIGN(options.drop_thinking, bool_member(request, "drop_thinking", true));
  DSV4_ASSIGN(options.add_default_bos_token, bool_member(request, "add_default_bos_token", true));
  if (const py::Value* effort = request.find("reasoning_effort"); effort && !effort->is_null()) {
    DSV4_ASSIGN(options.reasoning_effort, string_member(request, "reasoning_effort"));
  }
  py::Value::Array context;
  if (const py::Value* given = request.find("context"); given && !given->is_null()) {
    DSV4_ASSIGN(context, array_member(request, "context"));
    options.context = &context;
  }
  if (const py::Value* tools = request.find("tools"); tools && tools->truthy()) {
    messages = chat::attach_tools(std::move(messages), *tools);
  }
  DSV4_ASSIGN(std::string text, chat::encode(messages, options));
  return py::Value::object({{"text", py::Value(std::move(text))}});
}

}  // namespace

void add_encode(Command app, int& exit_code) {
  Command command = app.subcommand("encode", "Conversations to prompts, JSON lines");
  command.footer(
      "Reads one conversation per line of standard input and writes {\"text\": prompt} for each:\n"
      "  messages          array of {\"role\", \"content\", ...}\n"
      "  thinking_mode     \"chat\" or \"thinking\"\n"
      "  drop_thinking     leave earlier reasoning out (default true)\n"
      "  reasoning_effort  null, \"high\" or \"max\"\n"
      "  context           messages that were printed before (optional)\n"
      "  tools             array of tools for the first message (optional)\n"
      "A conversation that has no prompt gives {\"error\": ...}, and the exit code is 1.\n\n"
      "  echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], \"thinking_mode\": "
      "\"chat\"}' |\n"
      "    dsv4 encode");
  command.run([&exit_code] { exit_code = run_json_lines(encode_line); });
}

}  // namespace dsv4::apps
