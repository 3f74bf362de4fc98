// The prompt of a conversation, to the byte, and the message that a completion stands for. Both are
// specified in terms of Python objects, which is why messages are py::Value.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dsv4/status.h"
#include "text/py_json.h"

namespace dsv4::chat {

enum class ThinkingMode { kChat, kThinking };

// "chat" or "thinking".
Result<ThinkingMode> parse_thinking_mode(std::string_view name);

struct EncodeOptions {
  ThinkingMode thinking_mode = ThinkingMode::kThinking;
  // Leaves the reasoning of earlier turns out. Without effect where a message brings tools.
  bool drop_thinking = true;
  // None, "high" or "max"; has an effect in thinking mode only.
  std::optional<std::string> reasoning_effort;
  // Messages that were printed before: they decide how the new ones are printed.
  const py::Value::Array* context = nullptr;
  // Begin with the BOS token where there is no context.
  bool add_default_bos_token = true;
};

// Each message is an object with a role: system, developer, user, assistant, tool, latest_reminder.
// Errors name the message.
Result<std::string> encode(const py::Value::Array& messages, const EncodeOptions& options);

// The messages with `tools` (an array in the OpenAI format) put where the encoder looks for them:
// on the first message, or on an empty system message before it where it cannot carry them.
py::Value::Array attach_tools(py::Value::Array messages, py::Value tools);

struct ToolCall {
  std::string name;
  std::string arguments;  // JSON text of an object
};

struct AssistantMessage {
  std::string content;
  std::string reasoning_content;
  std::vector<ToolCall> tool_calls;
};

// Reads a completion with its EOS, strictly: whatever the format does not provide for is an error.
// The EOS may be missing behind a complete block of tool calls only.
Result<AssistantMessage> parse(std::string_view text, ThinkingMode mode);

// {"role": "assistant", "content", "reasoning_content", "tool_calls"}, as in the OpenAI format.
py::Value to_json(const AssistantMessage& message);

}  // namespace dsv4::chat
