#include "server/conversation.h"

#include <charconv>
#include <limits>

#include "base/str.h"
#include "text/chat_format.h"

namespace dsv4::server {
namespace {

const std::string* role_of(const py::Value& message) {
  const py::Value* const role = message.find("role");
  return role ? role->if_string() : nullptr;
}

std::string_view last_role(const Conversation& c) {
  const std::string* const role = c.messages.empty() ? nullptr : role_of(c.messages.back());
  return role ? std::string_view(*role) : std::string_view();
}

bool knows_tool(const Conversation& c, std::string_view name) {
  for (const py::Value& tool : c.tools) {
    const py::Value* const function = tool.find("function");
    const py::Value* const found = function ? function->find("name") : nullptr;
    if (found && found->if_string() && *found->if_string() == name) return true;
  }
  return false;
}

void check(const Conversation& c, Problem& problem) {
  const std::string_view last = last_role(c);
  if (last.empty()) {
    problem.report("messages", "messages: expected at least one message, found none");
  } else if (last == "system") {
    problem.report("messages",
                   "messages: the last one is a system message, which the model does not answer; "
                   "put a user message behind it");
  } else if (last == "assistant" && c.messages.back().find("tool_calls")) {
    problem.report("messages",
                   "messages: the last one calls tools; put their results behind it");
  }
  const bool needs_tools = c.tool_choice.kind == ToolChoice::Kind::kRequired ||
                           c.tool_choice.kind == ToolChoice::Kind::kNamed;
  if (needs_tools && c.tools.empty()) {
    problem.report("tool_choice", "tool_choice: asks for a call, but there are no tools");
  }
  if (c.tool_choice.kind == ToolChoice::Kind::kNamed && !knows_tool(c, c.tool_choice.name)) {
    problem.report("tool_choice",
                   cat("tool_choice: there is no tool \"", c.tool_choice.name, "\""));
  }
}

ConstraintSpec constraint_of(const Conversation& c, bool reasons_first) {
  ConstraintSpec spec;
  spec.format = c.format;
  for (const py::Value& tool : c.tools) {
    const py::Value& function = *tool.find("function");
    const py::Value* const parameters = function.find("parameters");
    const py::Value* const strict = function.find("strict");
    // Of several tools, tool_choice may name one.
    const std::string& name = *function.find("name")->if_string();
    if (c.tool_choice.kind == ToolChoice::Kind::kNamed && name != c.tool_choice.name) continue;
    spec.tools.push_back({.name = name,
                          .parameters = parameters ? *parameters : py::Value(),
                          .strict = strict && strict->truthy()});
  }
  spec.must_call = c.tool_choice.kind == ToolChoice::Kind::kRequired ||
                   c.tool_choice.kind == ToolChoice::Kind::kNamed;
  spec.may_not_call = c.tool_choice.kind == ToolChoice::Kind::kNone;
  spec.one_call = !c.parallel_calls;
  spec.reasons_first = reasons_first;
  return spec;
}

// The schema is part of the prompt too: on the first message, where the encoder looks for it.
void attach_format(Conversation& c) {
  if (c.format.kind != OutputFormat::Kind::kJsonSchema) return;
  const std::string* const role = role_of(c.messages.front());
  if (!role || *role != "system") {
    c.messages.insert(c.messages.begin(), py::Value::object({{"role", "system"}, {"content", ""}}));
  }
  c.messages.front().set("response_format", c.format.schema);
}

}  // namespace

Thinking thinking_of(std::string_view name) {
  Thinking t;
  t.on = name != "off";
  if (t.on) t.effort = name;
  return t;
}

std::optional<GenerationSpec> make_spec(App& app, Conversation c, Problem& problem) {
  check(c, problem);
  if (problem.any()) return std::nullopt;

  chat::EncodeOptions options;
  options.thinking_mode = c.thinking.on ? chat::ThinkingMode::kThinking : chat::ThinkingMode::kChat;
  if (c.thinking.on) options.reasoning_effort = c.thinking.effort;
  chat::ThinkingMode answer_mode = options.thinking_mode;
  if (last_role(c) == "assistant") {
    // Printed without its end, and the answer goes on behind it: its reasoning is over.
    c.messages.back().set("wo_eos", true);
    answer_mode = chat::ThinkingMode::kChat;
  }
  GenerationSpec spec;
  auto constraint =
      app.constraints.make(constraint_of(c, answer_mode == chat::ThinkingMode::kThinking));
  if (!constraint.ok()) {
    problem.report(c.format.kind == OutputFormat::Kind::kText ? "tools" : "response_format",
                   constraint.status().message());
    return std::nullopt;
  }
  spec.constraint = std::move(constraint).value();
  attach_format(c);
  py::Value::Array messages = std::move(c.messages);
  if (!c.tools.empty()) {
    messages = chat::attach_tools(std::move(messages), py::Value(std::move(c.tools)));
  }
  const auto prompt = chat::encode(messages, options);
  if (!prompt.ok()) {
    problem.report("messages", prompt.status().message());
    return std::nullopt;
  }
  auto tokens = app.tokenizer.encode(*prompt);
  if (!tokens.ok()) {
    problem.report("messages", tokens.status().message());
    return std::nullopt;
  }
  const int64_t context = app.engine.info().context;
  if (std::ssize(*tokens) >= context) {
    problem.report("messages",
                   cat("messages: the prompt has ", tokens->size(),
                       " tokens, the context of this server holds ", context,
                       "; send less, or start it with a larger --ctx"),
                   "context_length_exceeded");
    return std::nullopt;
  }
  spec.request.prompt = std::move(tokens).value();
  spec.request.sampling = std::move(c.sampling);
  spec.request.max_tokens = c.max_tokens;
  spec.request.ignore_eos = c.ignore_eos;
  spec.mode = answer_mode;
  if (c.thinking.budget && answer_mode == chat::ThinkingMode::kThinking) {
    if (const auto end = app.tokenizer.token_id(chat::kThinkEnd)) {
      spec.request.forced.push_back({.after = *c.thinking.budget, .tokens = {*end}, .unless = {*end}});
    }
  }
  spec.stops = std::move(c.stops);
  return spec;
}

std::string read_text(const Fields& message, std::string_view key,
                      std::initializer_list<std::string_view> text_types) {
  const py::Value* const content = message.get(key);
  if (!content) return {};
  if (const std::string* text = content->if_string()) return *text;
  const py::Value::Array* const parts = content->if_array();
  if (!parts) {
    message.report(key, cat("expected a string or a list of parts, found ", content->type_name()));
    return {};
  }
  std::string out;
  for (size_t i = 0; i < parts->size(); ++i) {
    const Fields part((*parts)[i], message.path(key, i), message.problem());
    const std::string type = part.string("type").value_or("");
    bool is_text = false;
    for (const std::string_view name : text_types) is_text = is_text || type == name;
    if (!is_text) {
      part.report("type", cat("\"", type, "\" is not supported here; this model reads text only"));
      return {};
    }
    const auto text = part.string("text");
    if (!text) part.report("text", "expected a string");
    if (i > 0) out += "\n\n";
    out += text.value_or("");
  }
  return out;
}

void check_model(const App& app, const Fields& body) {
  const auto model = body.string("model");
  if (!model || *model == app.options.model_name) return;
  body.problem().report("model",
                        cat("the model \"", *model, "\" does not exist; this server has \"",
                            app.options.model_name, "\""),
                        "model_not_found");
}

SamplingParams read_sampling(const App& app, const Fields& body) {
  SamplingParams p = app.engine.info().sampling;
  const auto set = [&](std::string_view key, float& to, double min, double max) {
    if (const auto x = body.number(key, min, max)) to = static_cast<float>(*x);
  };
  set("temperature", p.temperature, 0, 100);
  set("top_p", p.top_p, 0, 1);
  set("min_p", p.min_p, 0, 1);
  set("repetition_penalty", p.repetition_penalty, 0.01, 100);
  set("presence_penalty", p.presence_penalty, -2, 2);
  set("frequency_penalty", p.frequency_penalty, -2, 2);
  if (p.top_p <= 0) body.report("top_p", "expected more than 0");
  // -1 is what some clients send for "off".
  if (const auto k = body.integer("top_k", -1, std::numeric_limits<int32_t>::max())) {
    p.top_k = static_cast<int32_t>(std::max<int64_t>(0, *k));
  }
  constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
  if (const auto seed = body.integer("seed", -kLargest - 1, kLargest)) {
    p.seed = static_cast<uint64_t>(*seed);
  }
  if (const py::Value* const bias = body.object("logit_bias")) {
    for (const py::Member& member : *bias->if_object()) {
      int32_t id = -1;
      const char* const end = member.key.data() + member.key.size();
      const auto [rest, error] = std::from_chars(member.key.data(), end, id);
      if (error != std::errc() || rest != end || id < 0 || id >= app.engine.info().vocab_size) {
        body.report("logit_bias", cat("expected token ids below ", app.engine.info().vocab_size,
                                      " as keys, found \"", member.key, "\""));
        break;
      }
      const Fields entry(*bias, body.path("logit_bias"), body.problem());
      if (const auto x = entry.number(member.key, -100, 100)) {
        p.logit_bias.emplace_back(id, static_cast<float>(*x));
      }
    }
  }
  return p;
}

void check_tool(const Fields& tool) {
  (void)tool.one_of("type", {"function"});
  const py::Value* const function = tool.object("function");
  if (!function) return tool.report("function", "expected an object with a name");
  const Fields fields(*function, tool.path("function"), tool.problem());
  const auto name = fields.string("name");
  if (!name || name->empty() || name->find_first_of("\"<>\n") != name->npos) {
    fields.report("name", "expected a name without quotes, angle brackets and line feeds");
  }
  (void)fields.string("description");
  (void)fields.object("parameters");
  (void)fields.boolean("strict");
}

ToolChoice read_tool_choice(const Fields& body, std::string_view holder) {
  using Kind = ToolChoice::Kind;
  const py::Value* const choice = body.get("tool_choice");
  if (!choice) return {};
  if (choice->if_string()) {
    const auto word = body.one_of("tool_choice", {"auto", "none", "required"});
    return {word == "none" ? Kind::kNone : word == "required" ? Kind::kRequired : Kind::kAuto, ""};
  }
  const Fields fields(*choice, "tool_choice", body.problem());
  (void)fields.one_of("type", {"function"});
  if (holder.empty()) return {Kind::kNamed, fields.string("name").value_or("")};
  const py::Value* const held = fields.object(holder);
  if (!held) {
    fields.report(holder, "expected an object with a name");
    return {};
  }
  const Fields named(*held, fields.path(holder), body.problem());
  return {Kind::kNamed, named.string("name").value_or("")};
}

}  // namespace dsv4::server
