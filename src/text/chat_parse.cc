#include "base/str.h"
#include "text/chat.h"
#include "text/chat_format.h"
#include "text/tool_block.h"

namespace dsv4::chat {
namespace {

Status wrong(std::string_view what, std::string_view hint) {
  return Status(Code::kInvalidArgument, cat("completion: ", what, "; ", hint));
}

Status check_plain(std::string_view field, std::string_view text) {
  for (const std::string_view token : {kBos, kEos, kThinkBegin, kThinkEnd, kDsml}) {
    if (text.find(token) == text.npos) continue;
    return wrong(cat(field, ": expected plain text, found ", token), "the model left the format");
  }
  return {};
}

}  // namespace

Result<AssistantMessage> parse(std::string_view text, ThinkingMode mode) {
  AssistantMessage message;
  if (mode == ThinkingMode::kThinking) {
    const size_t end = text.find(kThinkEnd);
    if (end == text.npos) {
      return wrong("expected </think>, found none", "was it cut off while thinking?");
    }
    if (text.substr(0, end).find(kToolCallsBegin) != text.npos) {
      return wrong("expected </think> before the tool calls", "the model left the format");
    }
    message.reasoning_content = text.substr(0, end);
    text.remove_prefix(end + kThinkEnd.size());
  }

  const size_t eos = text.find(kEos);
  const size_t tools = text.substr(0, eos).find(kToolCallsBegin);
  message.content = text.substr(0, tools != text.npos ? tools : eos);
  DSV4_TRY(check_plain("reasoning", message.reasoning_content));
  DSV4_TRY(check_plain("content", message.content));
  if (tools != text.npos) {
    text.remove_prefix(tools + kToolCallsBegin.size());
    ToolBlockReader reader;
    DSV4_TRY(reader.advance(text).with_context("completion"));
    if (!reader.complete()) {
      return wrong("expected the end of the tool calls, found the end of the text",
                   "was it cut off?");
    }
    text.remove_prefix(reader.consumed());
    message.tool_calls = reader.calls();
    if (text.empty()) return message;
    if (!text.starts_with(kEos))
      return wrong("expected nothing between tool calls and EOS", "the model left the format");
    text.remove_prefix(kEos.size());
  } else {
    if (eos == text.npos)
      return wrong("expected EOS, found the end of the text", "was it cut off?");
    text.remove_prefix(eos + kEos.size());
  }
  if (!text.empty()) return wrong("expected nothing behind EOS", "pass one completion at a time");
  return message;
}

py::Value to_json(const AssistantMessage& message) {
  py::Value::Array calls;
  for (const ToolCall& call : message.tool_calls) {
    calls.push_back(py::Value::object(
        {{"type", "function"},
         {"function", py::Value::object({{"name", py::Value(call.name)},
                                         {"arguments", py::Value(call.arguments)}})}}));
  }
  return py::Value::object({{"role", "assistant"},
                            {"content", py::Value(message.content)},
                            {"reasoning_content", py::Value(message.reasoning_content)},
                            {"tool_calls", py::Value(std::move(calls))}});
}

}  // namespace dsv4::chat
