// The steps before printing: tool results and consecutive user texts become the blocks of one user
// message, and earlier reasoning is left out. Private to text/.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "text/chat.h"

namespace dsv4::chat {

// A piece of a user turn.
struct Block {
  bool is_tool_result = false;
  std::string tool_use_id;
  const py::Value* content = nullptr;  // nullptr: the message had none
};

// A message on its way to print; points into the caller's messages.
struct Message {
  const py::Value* source = nullptr;  // the first message it was made of
  size_t index = 0;                   // of that message in the caller's list, for errors
  std::string role;
  std::vector<Block> blocks;  // of a user turn
  bool was_tool = false;      // a user turn opened by a tool message: it has blocks only
  bool drop_reasoning = false;
  bool is_context = false;  // printed before; decides, is not printed again

  // A member that the printed message has; nullptr where preprocessing took it away.
  const py::Value* find(std::string_view key) const;
  // A member that is neither absent nor null.
  const py::Value* find_set(std::string_view key) const;
};

Result<std::vector<Message>> preprocess(const py::Value::Array& messages);

// Index of the last user or developer message, -1 where there is none.
std::ptrdiff_t last_user_index(const std::vector<Message>& messages);

// Earlier assistants lose their reasoning, earlier developers (and unknown roles) go.
void drop_earlier_thinking(std::vector<Message>& messages);

}  // namespace dsv4::chat
