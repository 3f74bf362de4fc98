#include "server/responses_request.h"

#include "base/str.h"
#include "server/output_format.h"

namespace dsv4::server {
namespace {

using py::Value;

Value message(std::string_view role, std::string content) {
  return Value::object({{"role", Value(role)}, {"content", Value(std::move(content))}});
}

// What the assistant said, thought and called comes as items of its own; here they are one message.
Value& open_assistant(Value::Array& out) {
  const Value* const role = out.empty() ? nullptr : out.back().find("role");
  if (!role || *role->if_string() != "assistant") out.push_back(message("assistant", ""));
  return out.back();
}

void append_text(Value& m, std::string_view key, std::string_view text) {
  const Value* const before = m.find(key);
  m.set(key, Value(cat(before ? std::string_view(*before->if_string()) : "", text)));
}

void read_reasoning(const Fields& item, Value& assistant) {
  for (const std::string_view key : {"content", "summary"}) {
    const std::string text = read_text(item, key, {"reasoning_text", "summary_text"});
    if (text.empty()) continue;
    append_text(assistant, "reasoning_content", text);
    return;
  }
}

void read_call(const Fields& item, Value& assistant) {
  const auto name = item.string("name");
  const auto arguments = item.string("arguments");
  if (!name) item.report("name", "expected a string");
  if (!arguments) item.report("arguments", "expected JSON text of an object");
  Value::Array calls;
  if (const Value* before = assistant.find("tool_calls")) calls = *before->if_array();
  calls.push_back(Value::object(
      {{"id", Value(item.string("call_id").value_or(""))},
       {"type", "function"},
       {"function", Value::object({{"name", Value(name.value_or(""))},
                                   {"arguments", Value(arguments.value_or(""))}})}}));
  assistant.set("tool_calls", Value(std::move(calls)));
}

void read_item(const Fields& item, Value::Array& out) {
  const std::string type = item.string("type").value_or("message");
  if (type == "message") {
    const auto role = item.one_of("role", {"system", "developer", "user", "assistant"});
    if (!role) return item.report("role", "expected system, developer, user or assistant");
    std::string text = read_text(item, "content", {"input_text", "output_text", "text", "refusal"});
    if (*role == "assistant") {
      append_text(open_assistant(out), "content", text);
    } else {
      out.push_back(message(*role == "developer" ? "system" : *role, std::move(text)));
    }
  } else if (type == "reasoning") {
    read_reasoning(item, open_assistant(out));
  } else if (type == "function_call") {
    read_call(item, open_assistant(out));
  } else if (type == "function_call_output") {
    Value result = message("tool", read_text(item, "output", {"input_text", "output_text", "text"}));
    result.set("tool_call_id", Value(item.string("call_id").value_or("")));
    out.push_back(std::move(result));
  } else {
    item.report("type", cat("\"", type, "\" is not supported here; expected message, reasoning, "
                                        "function_call or function_call_output"));
  }
}

void read_input(const Fields& body, Value::Array& out) {
  if (const auto instructions = body.string("instructions")) {
    out.push_back(message("system", *instructions));
  }
  const Value* const input = body.get("input");
  if (!input) return body.report("input", "expected text or a list of items");
  if (input->if_string()) {
    out.push_back(message("user", *input->if_string()));
    return;
  }
  const Value::Array* const items = body.array("input");
  for (size_t i = 0; items && i < items->size() && !body.problem().any(); ++i) {
    read_item(Fields((*items)[i], body.path("input", i), body.problem()), out);
  }
}

void read_tools(const Fields& body, Conversation& c) {
  const Value::Array* const tools = body.array("tools");
  for (size_t i = 0; tools && i < tools->size(); ++i) {
    const Fields tool((*tools)[i], body.path("tools", i), body.problem());
    if (!tool.one_of("type", {"function"})) tool.report("type", "expected \"function\"");
    Value function(Value::Object{});
    for (const std::string_view key : {"name", "description", "parameters", "strict"}) {
      if (const Value* found = tool.get(key)) function.set(key, *found);
    }
    Value made = Value::object({{"type", "function"}, {"function", std::move(function)}});
    check_tool(Fields(made, body.path("tools", i), body.problem()));
    c.tools.push_back(std::move(made));
  }
  c.tool_choice = read_tool_choice(body, "");
}

void read_reasoning_options(const App& app, const Fields& body, Conversation& c) {
  c.thinking = thinking_of(app.options.thinking);
  const Value* const reasoning = body.object("reasoning");
  if (!reasoning) return;
  const Fields fields(*reasoning, "reasoning", body.problem());
  const auto effort =
      fields.one_of("effort", {"none", "minimal", "low", "medium", "high", "xhigh", "max"});
  if (!effort) return;
  c.thinking.on = *effort != "none";
  c.thinking.effort = *effort == "xhigh" || *effort == "max" ? "max" : "high";
}

}  // namespace

ResponsesRequest read_responses_request(const App& app, const Fields& body) {
  ResponsesRequest r;
  Conversation& c = r.conversation;
  check_model(app, body);
  read_input(body, c.messages);
  read_tools(body, c);
  read_reasoning_options(app, body, c);
  if (const Value* const text = body.object("text")) {
    const Fields fields(*text, "text", body.problem());
    if (const Value* const format = fields.object("format")) {
      c.format = read_format(Fields(*format, "text.format", body.problem()));
    }
  }
  c.parallel_calls = body.boolean("parallel_tool_calls").value_or(true);
  c.sampling = read_sampling(app, body);
  if (const auto m = body.integer("max_output_tokens", 1, int64_t{1} << 40)) c.max_tokens = *m;
  r.stream = body.boolean("stream").value_or(false);
  for (const std::string_view key : {"previous_response_id", "conversation", "prompt"}) {
    if (body.get(key)) {
      body.report(key, "is not supported: nothing is stored; send the whole input");
    }
  }
  if (body.boolean("background").value_or(false)) body.report("background", "is not supported");

  r.echoed = Value(Value::Object{});
  const auto echo = [&](std::string_view key, Value otherwise) {
    const Value* const found = body.get(key);
    r.echoed.set(key, found ? *found : std::move(otherwise));
  };
  echo("instructions", Value());
  echo("max_output_tokens", Value());
  echo("metadata", Value(Value::Object{}));
  echo("parallel_tool_calls", true);
  echo("reasoning", Value::object({{"effort", c.thinking.on ? Value(c.thinking.effort) : Value("none")},
                                   {"summary", Value()}}));
  echo("temperature", Value(static_cast<double>(c.sampling.temperature)));
  echo("text", Value::object({{"format", Value::object({{"type", "text"}})}}));
  echo("tool_choice", "auto");
  echo("tools", Value(Value::Array{}));
  echo("top_p", Value(static_cast<double>(c.sampling.top_p)));
  return r;
}

}  // namespace dsv4::server
