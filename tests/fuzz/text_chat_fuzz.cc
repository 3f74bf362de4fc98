// Any JSON as a conversation, any text as a completion, and the streaming parser against the one
// that sees the whole text.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "text/chat.h"
#include "text/chat_format.h"
#include "text/stream_parser.h"

namespace {

using namespace dsv4;

void conversation(std::string_view json) {
  const auto value = py::loads(json);
  if (!value.ok()) return;
  // What was written reads back as what was written.
  const std::string text = py::dumps(*value);
  const auto again = py::loads(text);
  if (!again.ok() || py::dumps(*again) != text) std::abort();
  if (!value->if_array()) return;
  const py::Value::Array& messages = *value->if_array();
  for (const auto mode : {chat::ThinkingMode::kChat, chat::ThinkingMode::kThinking}) {
    chat::EncodeOptions options;
    options.thinking_mode = mode;
    options.reasoning_effort = "max";
    (void)chat::encode(messages, options).ok();
    options.context = &messages;
    (void)chat::encode(messages, options).ok();
  }
}

void completion(std::string_view text, chat::ThinkingMode mode, size_t step) {
  const auto whole = chat::parse(text, mode);
  chat::StreamParser parser(mode);
  std::vector<chat::StreamEvent> events;
  for (size_t at = 0; at < text.size(); at += step) parser.feed(text.substr(at, step), events);
  const auto streamed = parser.finish(events);
  if (streamed.ok() != whole.ok()) std::abort();
  for (const chat::StreamEvent& event : events) {
    const bool plain = event.kind == chat::StreamEvent::Kind::kContent ||
                       event.kind == chat::StreamEvent::Kind::kReasoning;
    if (plain && event.text.find(chat::kDsml) != event.text.npos) std::abort();
  }
  if (whole.ok() && py::dumps(to_json(parser.so_far())) != py::dumps(to_json(*whole))) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const size_t step = size_t{1} + data[0] % 16;
  const auto mode = data[0] & 0x80 ? chat::ThinkingMode::kThinking : chat::ThinkingMode::kChat;
  conversation(text);
  completion(text, mode, step);
  return 0;
}
