#include "text/chat_preprocess.h"

#include <algorithm>

#include "base/str.h"

namespace dsv4::chat {
namespace {

bool is_one_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// What identifies a call, whatever its type; empty for an id that is absent or empty.
std::string id_key(const py::Value* id) {
  return id && id->truthy() ? py::dumps(*id) : std::string();
}

// Places of the ids in a list of tool calls; a repeated id counts at its last place.
std::vector<std::string> call_ids(const py::Value::Array& calls) {
  std::vector<std::string> ids;
  for (const py::Value& call : calls) {
    const py::Value* id = call.find("id");
    if (!id || !id->truthy()) {
      const py::Value* function = call.find("function");
      id = function ? function->find("id") : nullptr;
    }
    ids.push_back(id_key(id));
  }
  return ids;
}

// Results come in the order of the calls they answer; texts keep their places.
void sort_results(std::vector<Block>& blocks, const std::vector<std::string>& ids) {
  const bool any_id =
      std::any_of(ids.begin(), ids.end(), [](const auto& id) { return !id.empty(); });
  std::vector<Block> results;
  std::copy_if(blocks.begin(), blocks.end(), std::back_inserter(results),
               [](const Block& b) { return b.is_tool_result; });
  if (results.size() < 2 || !any_id) return;
  const auto place = [&](const Block& block) {
    if (block.tool_use_id.empty()) return std::ptrdiff_t{0};
    const auto found = std::find(ids.rbegin(), ids.rend(), block.tool_use_id);
    return found == ids.rend() ? std::ptrdiff_t{0} : ids.rend() - found - 1;
  };
  std::stable_sort(results.begin(), results.end(),
                   [&](const Block& a, const Block& b) { return place(a) < place(b); });
  auto next = results.begin();
  for (Block& block : blocks) {
    if (block.is_tool_result) block = *next++;
  }
}

}  // namespace

const py::Value* Message::find(std::string_view key) const {
  if (role == "user" && (was_tool || !is_one_of(key, {"content", "task", "wo_eos", "mask"}))) {
    return nullptr;
  }
  if (drop_reasoning && key == "reasoning_content") return nullptr;
  return source->find(key);
}

const py::Value* Message::find_set(std::string_view key) const {
  const py::Value* value = find(key);
  return value && !value->is_null() ? value : nullptr;
}

Result<std::vector<Message>> preprocess(const py::Value::Array& messages) {
  std::vector<Message> out;
  for (size_t i = 0; i < messages.size(); ++i) {
    const py::Value& source = messages[i];
    const py::Value* role = source.find("role");
    if (!role || !role->if_string()) {
      return Status(Code::kInvalidArgument, cat("messages[", i, "].role: expected a string, found ",
                                                !source.if_object() ? source.type_name()
                                                : role              ? role->type_name()
                                                                    : "nothing"));
    }
    Message message{.source = &source, .index = i, .role = *role->if_string()};
    Message* last_user = out.empty() || out.back().role != "user" ? nullptr : &out.back();
    if (message.role == "tool") {
      Block block{.is_tool_result = true,
                  .tool_use_id = id_key(source.find("tool_call_id")),
                  .content = source.find("content")};
      if (last_user) {
        last_user->blocks.push_back(std::move(block));
        continue;
      }
      message.role = "user";
      message.was_tool = true;
      message.blocks.push_back(std::move(block));
    } else if (message.role == "user") {
      Block block{.content = source.find("content")};
      // What else this message carries, a task above all, is lost when it is fused.
      if (last_user && !last_user->find_set("task")) {
        last_user->blocks.push_back(std::move(block));
        continue;
      }
      message.blocks.push_back(std::move(block));
    }
    out.push_back(std::move(message));
  }

  std::vector<std::string> ids;
  for (Message& message : out) {
    if (message.role == "assistant") {
      const py::Value* calls = message.find("tool_calls");
      if (calls && calls->truthy() && calls->if_array()) ids = call_ids(*calls->if_array());
    } else {
      sort_results(message.blocks, ids);
    }
  }
  return out;
}

std::ptrdiff_t last_user_index(const std::vector<Message>& messages) {
  for (size_t i = messages.size(); i-- > 0;) {
    if (is_one_of(messages[i].role, {"user", "developer"})) return static_cast<std::ptrdiff_t>(i);
  }
  return -1;
}

void drop_earlier_thinking(std::vector<Message>& messages) {
  const std::ptrdiff_t last = last_user_index(messages);
  std::vector<Message> kept;
  for (size_t i = 0; i < messages.size(); ++i) {
    Message& message = messages[i];
    if (static_cast<std::ptrdiff_t>(i) < last) {
      if (!is_one_of(message.role, {"user", "system", "tool", "latest_reminder",
                                    "direct_search_results", "assistant"})) {
        continue;
      }
      message.drop_reasoning = message.role == "assistant";
    }
    kept.push_back(std::move(message));
  }
  messages = std::move(kept);
}

}  // namespace dsv4::chat
