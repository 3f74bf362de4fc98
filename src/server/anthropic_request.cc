#include "server/anthropic_request.h"

#include "base/str.h"
#include "server/output_format.h"

namespace dsv4::server {
namespace {

using py::Value;

Value message(const char* role, std::string content) {
  return Value::object({{"role", role}, {"content", Value(std::move(content))}});
}

// The encoder joins consecutive user and tool messages to one turn, in their order.
void read_user_block(const Fields& block, Value::Array& out) {
  const std::string type = block.string("type").value_or("");
  if (type == "text") {
    const auto text = block.string("text");
    if (!text) block.report("text", "expected a string");
    out.push_back(message("user", text.value_or("")));
  } else if (type == "tool_result") {
    Value result = message("tool", read_text(block, "content", {"text"}));
    const auto id = block.string("tool_use_id");
    if (!id) block.report("tool_use_id", "expected the id of a tool_use block");
    result.set("tool_call_id", Value(id.value_or("")));
    out.push_back(std::move(result));
  } else {
    block.report("type",
                 cat("\"", type, "\" is not supported here; expected text or tool_result"));
  }
}

Value read_tool_use(const Fields& block) {
  const auto name = block.string("name");
  if (!name) block.report("name", "expected a string");
  const Value* const input = block.object("input");
  return Value::object(
      {{"id", Value(block.string("id").value_or(""))},
       {"type", "function"},
       {"function", Value::object({{"name", Value(name.value_or(""))},
                                   {"arguments", Value(input ? py::dumps(*input) : "{}")}})}});
}

Value read_assistant(const Fields& m, const Value::Array& blocks) {
  std::string content, reasoning;
  Value::Array calls;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const Fields block(blocks[i], m.path("content", i), m.problem());
    const std::string type = block.string("type").value_or("");
    if (type == "text") {
      content += block.string("text").value_or("");
    } else if (type == "thinking") {
      reasoning += block.string("thinking").value_or("");
    } else if (type == "tool_use") {
      calls.push_back(read_tool_use(block));
    } else if (type != "redacted_thinking") {
      block.report("type", cat("\"", type, "\" is not supported here; expected text, thinking or "
                                           "tool_use"));
    }
  }
  Value out = message("assistant", std::move(content));
  if (!reasoning.empty()) out.set("reasoning_content", Value(std::move(reasoning)));
  if (!calls.empty()) out.set("tool_calls", Value(std::move(calls)));
  return out;
}

void read_messages(const Fields& body, Value::Array& out) {
  const Value::Array* const messages = body.array("messages");
  if (!messages) return body.report("messages", "expected a list of messages");
  for (size_t i = 0; i < messages->size() && !body.problem().any(); ++i) {
    const Fields m((*messages)[i], body.path("messages", i), body.problem());
    const auto role = m.one_of("role", {"user", "assistant"});
    const Value* const content = m.get("content");
    if (!role || !content) {
      m.report(role ? "content" : "role", role ? "expected text or a list of blocks"
                                               : "expected \"user\" or \"assistant\"");
      return;
    }
    const Value::Array* const blocks = content->if_array();
    if (!blocks) {
      out.push_back(message(role->c_str(), m.string("content").value_or("")));
    } else if (*role == "assistant") {
      out.push_back(read_assistant(m, *blocks));
    } else {
      for (size_t b = 0; b < blocks->size(); ++b) {
        read_user_block(Fields((*blocks)[b], m.path("content", b), m.problem()), out);
      }
    }
  }
}

void read_tools(const Fields& body, Conversation& c) {
  const Value::Array* const tools = body.array("tools");
  for (size_t i = 0; tools && i < tools->size(); ++i) {
    const Fields tool((*tools)[i], body.path("tools", i), body.problem());
    (void)tool.one_of("type", {"custom"});
    Value function(Value::Object{});
    if (const auto name = tool.string("name")) function.set("name", Value(*name));
    if (const auto text = tool.string("description")) function.set("description", Value(*text));
    const Value* const schema = tool.object("input_schema");
    if (!schema) tool.report("input_schema", "expected a JSON schema of type object");
    if (schema) function.set("parameters", *schema);
    if (const auto strict = tool.boolean("strict")) function.set("strict", Value(*strict));
    Value made = Value::object({{"type", "function"}, {"function", std::move(function)}});
    check_tool(Fields(made, body.path("tools", i), body.problem()));
    c.tools.push_back(std::move(made));
  }
  const Value* const choice = body.object("tool_choice");
  if (!choice) return;
  const Fields fields(*choice, "tool_choice", body.problem());
  const auto type = fields.one_of("type", {"auto", "any", "tool", "none"});
  using Kind = ToolChoice::Kind;
  c.tool_choice.kind = type == "any"    ? Kind::kRequired
                       : type == "none" ? Kind::kNone
                       : type == "tool" ? Kind::kNamed
                                        : Kind::kAuto;
  c.tool_choice.name = fields.string("name").value_or("");
  c.parallel_calls = !fields.boolean("disable_parallel_tool_use").value_or(false);
}

}  // namespace

Conversation read_anthropic_request(const App& app, const Fields& body) {
  Conversation c;
  check_model(app, body);
  if (std::string system = read_text(body, "system", {"text"}); !system.empty()) {
    c.messages.push_back(message("system", std::move(system)));
  }
  read_messages(body, c.messages);
  read_tools(body, c);
  c.sampling = read_sampling(app, body);
  c.stops = body.strings("stop_sequences", 16);
  c.thinking = thinking_of(app.options.thinking);
  if (const Value* const thinking = body.object("thinking")) {
    const Fields k(*thinking, "thinking", body.problem());
    const auto type = k.one_of("type", {"enabled", "disabled", "adaptive"});
    c.thinking.on = type != "disabled";
    c.thinking.budget = k.integer("budget_tokens", 0, int64_t{1} << 40);
  }
  if (const Value* const config = body.object("output_config")) {
    const Fields k(*config, "output_config", body.problem());
    if (const Value* const format = k.object("format")) {
      c.format = read_format(Fields(*format, k.path("format"), body.problem()));
    }
    const auto effort = k.one_of("effort", {"low", "medium", "high", "xhigh", "max"});
    if (effort) c.thinking.effort = *effort == "xhigh" || *effort == "max" ? "max" : "high";
  }
  return c;
}

}  // namespace dsv4::server
