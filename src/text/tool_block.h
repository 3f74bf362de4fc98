// The inside of a block of tool calls, read as far as the text that is there decides: the one
// reader behind the whole-text parser and the streaming one. Private to text/.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "text/chat.h"

namespace dsv4::chat {

class ToolBlockReader {
 public:
  // `text` is everything behind the block's opening "<｜DSML｜tool_calls", and grows from call to
  // call. Reads on from where the last call stopped. Error: text that no continuation can repair.
  Status advance(std::string_view text);

  bool complete() const { return state_ == State::kComplete; }

  // Bytes of the text that the block takes; meaningful once it is complete.
  size_t consumed() const { return at_; }

  // Calls so far. The arguments of one that is not closed yet are the start of its JSON text.
  const std::vector<ToolCall>& calls() const { return calls_; }

 private:
  enum class State {
    kInvoke,     // before an invoke or the end of the block
    kHeader,     // behind <｜DSML｜invoke: the name of the tool
    kParameter,  // behind <｜DSML｜parameter
    kBetween,    // behind a parameter: another one or the end of the invoke
    kComplete,
  };

  // One step; false where the text does not reach far enough.
  Result<bool> step(std::string_view text);
  Status parameter(std::string_view text);

  State state_ = State::kInvoke;
  size_t at_ = 0;
  size_t searched_ = 0;  // no marker begins before this place: keeps streaming linear
  std::vector<ToolCall> calls_;
  std::vector<std::string> names_;  // of the parameters of the open call
};

}  // namespace dsv4::chat
