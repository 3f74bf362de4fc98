// A completion as it comes: text deltas of reasoning and content, and tool calls. Markup is never
// emitted as content: text that could become a marker is held back until it is decided.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/chat.h"
#include "text/tool_block.h"

namespace dsv4::chat {

struct StreamEvent {
  enum class Kind {
    kReasoning,          // `text` goes on the reasoning
    kContent,            // `text` goes on the content
    kToolCallBegin,      // `text` is the name of call `index`
    kToolCallArguments,  // `text` goes on the JSON text of the arguments of call `index`
  };
  Kind kind;
  std::string text;
  size_t index = 0;  // of the tool call
};

class StreamParser {
 public:
  explicit StreamParser(ThinkingMode mode)
      : mode_(mode),
        state_(mode == ThinkingMode::kThinking ? State::kReasoning : State::kContent) {}

  // Appends what `text` decides to `events`. The EOS belongs to the text: append chat::kEos where
  // the model ended by itself.
  void feed(std::string_view text, std::vector<StreamEvent>& events);

  // At the end of the stream: emits text that was held back as a possible marker, and returns what
  // parse() says of the whole completion. On an error, so_far() is what could be read.
  Result<AssistantMessage> finish(std::vector<StreamEvent>& events);

  // What comes next is still reasoning.
  bool in_reasoning() const { return state_ == State::kReasoning; }

  // Everything that was emitted.
  const AssistantMessage& so_far() const { return so_far_; }

 private:
  enum class State {
    kReasoning,
    kContent,
    kTools,
    kEnd,  // behind EOS, or where the completion left the format with a tool marker
  };

  void plain(std::vector<StreamEvent>& events, bool final);
  void tools(std::vector<StreamEvent>& events);
  void emit(std::string_view text, std::vector<StreamEvent>& events);

  ThinkingMode mode_;
  State state_;
  std::string text_;  // the completion so far
  size_t at_ = 0;     // everything before is emitted or was a marker
  size_t block_ = 0;  // where the inside of the tool block begins
  ToolBlockReader reader_;
  AssistantMessage so_far_;
};

}  // namespace dsv4::chat
