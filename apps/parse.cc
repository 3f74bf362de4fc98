#include "command.h"
#include "json_lines.h"
#include "text/chat.h"

namespace dsv4::apps {
namespace {

Result<py::Value> parse_line(const py::Value& request) {
  DSV4_ASSIGN(const std::string text, string_member(request, "text"));
  DSV4_ASSIGN(const std::string mode, string_member(request, "thinking_mode"));
  DSV4_ASSIGN(const chat::ThinkingMode thinking_mode, chat::parse_thinking_mode(mode));
  DSV4_ASSIGN(const chat::AssistantMessage message, chat::parse(text, thinking_mode));
  return chat::to_json(message);
}

}  // namespace

void add_parse(Command app, int& exit_code) {
  Command command = app.subcommand("parse", "Completions to messages, JSON lines");
  command.footer(
      "Reads {\"text\": completion, \"thinking_mode\": \"chat\" or \"thinking\"} per line of "
      "standard\n"
      "input and writes the message it stands for: role, content, reasoning_content, tool_calls.\n"
      "The completion includes its end-of-sentence token. One that does not follow the format "
      "gives\n"
      "{\"error\": ...}, and the exit code is 1.\n\n"
      "  echo '{\"text\": \"Hi<｜end▁of▁sentence｜>\", \"thinking_mode\": \"chat\"}' | dsv4 parse");
  command.run([&exit_code] { exit_code = run_json_lines(parse_line); });
}

}  // namespace dsv4::apps
