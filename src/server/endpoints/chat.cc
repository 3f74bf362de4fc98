// POST /v1/chat/completions: OpenAI's chat, with reasoning as DeepSeek's own API shows it
// (`reasoning_content`).
#include <ctime>
#include <map>

#include "base/str.h"
#include "server/answers.h"
#include "server/conversation.h"
#include "server/endpoints/endpoints.h"
#include "server/ids.h"
#include "server/openai_json.h"
#include "server/output_format.h"
#include "server/request_body.h"
#include "server/sse.h"

namespace dsv4::server {
namespace {

using py::Value;

// --- the request ---

Value read_tool_calls(const Fields& message) {
  Value::Array out;
  const Value::Array* const calls = message.array("tool_calls");
  for (size_t i = 0; calls && i < calls->size(); ++i) {
    const Fields call((*calls)[i], message.path("tool_calls", i), message.problem());
    (void)call.one_of("type", {"function"});
    const Value* const function = call.object("function");
    if (!function) {
      call.report("function", "expected an object with name and arguments");
      break;
    }
    const Fields f(*function, call.path("function"), message.problem());
    const auto name = f.string("name");
    const auto arguments = f.string("arguments");
    if (!name) f.report("name", "expected a string");
    if (!arguments) f.report("arguments", "expected JSON text of an object");
    out.push_back(Value::object(
        {{"id", Value(call.string("id").value_or(""))},
         {"type", "function"},
         {"function", Value::object({{"name", Value(name.value_or(""))},
                                     {"arguments", Value(arguments.value_or(""))}})}}));
  }
  return Value(std::move(out));
}

Value read_message(const Fields& m) {
  const auto role = m.one_of("role", {"system", "developer", "user", "assistant", "tool"});
  if (!role) m.report("role", "expected system, developer, user, assistant or tool");
  Value out = Value::object({{"role", Value(role.value_or("user"))},
                             {"content", Value(read_text(m, "content", {"text", "refusal"}))}});
  if (!role) return out;
  if (*role == "developer") out.set("role", "system");  // OpenAI's newer name for it
  if (*role == "tool") out.set("tool_call_id", Value(m.string("tool_call_id").value_or("")));
  if (*role == "user" && !m.get("content")) m.report("content", "expected text, found none");
  if (*role == "assistant") {
    if (const auto reasoning = m.string("reasoning_content"))
      out.set("reasoning_content", Value(*reasoning));
    if (Value calls = read_tool_calls(m); calls.truthy()) out.set("tool_calls", std::move(calls));
  }
  return out;
}

void read_tools(const Fields& body, Conversation& c) {
  const Value::Array* const tools = body.array("tools");
  for (size_t i = 0; tools && i < tools->size(); ++i) {
    check_tool(Fields((*tools)[i], body.path("tools", i), body.problem()));
    c.tools.push_back((*tools)[i]);
  }
  c.tool_choice = read_tool_choice(body, "function");
}

// Three ways to ask for it are in use: OpenAI's reasoning_effort, DeepSeek's `thinking` and the
// chat_template_kwargs of open-source servers.
Thinking read_thinking(const App& app, const Fields& body) {
  Thinking t = thinking_of(app.options.thinking);
  if (const Value* const kwargs = body.object("chat_template_kwargs")) {
    const Fields k(*kwargs, "chat_template_kwargs", body.problem());
    if (const auto on = k.boolean("thinking")) t.on = *on;
    if (const auto on = k.boolean("enable_thinking")) t.on = *on;
  }
  if (const Value* const thinking = body.object("thinking")) {
    const Fields k(*thinking, "thinking", body.problem());
    if (const auto type = k.one_of("type", {"enabled", "disabled"})) t.on = *type == "enabled";
    t.budget = k.integer("budget_tokens", 0, int64_t{1} << 40);
  }
  if (const auto effort = body.one_of(
          "reasoning_effort", {"none", "minimal", "low", "medium", "high", "xhigh", "max"})) {
    t.on = *effort != "none";
    t.effort = *effort == "xhigh" || *effort == "max" ? "max" : "high";
  }
  if (const auto budget = body.integer("thinking_token_budget", 0, int64_t{1} << 40))
    t.budget = budget;
  return t;
}

struct ChatRequest {
  Conversation conversation;
  int64_t n = 1;
  bool stream = false, include_usage = false, logprobs = false;
};

ChatRequest read_request(const App& app, const Fields& body) {
  ChatRequest r;
  Conversation& c = r.conversation;
  check_model(app, body);
  const Value::Array* const messages = body.array("messages");
  if (!messages) body.report("messages", "expected a list of messages");
  for (size_t i = 0; messages && i < messages->size(); ++i) {
    c.messages.push_back(
        read_message(Fields((*messages)[i], body.path("messages", i), body.problem())));
  }
  read_tools(body, c);
  c.thinking = read_thinking(app, body);
  c.format = read_output_format(body);
  c.parallel_calls = body.boolean("parallel_tool_calls").value_or(true);
  c.sampling = read_sampling(app, body);
  c.stops = body.strings("stop", 16);
  c.ignore_eos = body.boolean("ignore_eos").value_or(false);
  if (const auto m = body.integer("max_tokens", 1, int64_t{1} << 40)) c.max_tokens = *m;
  if (const auto m = body.integer("max_completion_tokens", 1, int64_t{1} << 40)) c.max_tokens = *m;
  r.n = body.integer("n", 1, app.options.max_choices).value_or(1);
  r.stream = body.boolean("stream").value_or(false);
  if (const Value* const options = body.object("stream_options")) {
    r.include_usage =
        Fields(*options, "stream_options", body.problem()).boolean("include_usage").value_or(false);
  }
  r.logprobs = body.boolean("logprobs").value_or(false);
  const auto top = body.integer("top_logprobs", 0, 20);
  if (top && !r.logprobs) body.report("top_logprobs", "needs \"logprobs\": true");
  if (r.logprobs) c.sampling.logprobs = static_cast<int32_t>(top.value_or(0));
  return r;
}

// --- the answer ---

class ChatWriter final : public AnswerWriter {
 public:
  ChatWriter(App& app, std::shared_ptr<Exchange> exchange, const ChatRequest& request)
      : AnswerWriter(std::move(exchange), request.stream),
        app_(app),
        include_usage_(request.include_usage),
        logprobs_(request.logprobs),
        choices_(static_cast<size_t>(request.n)) {}

  void begin() {
    if (!stream_) return;
    exchange_->begin_stream(sse_head());
    for (size_t i = 0; i < choices_.size(); ++i) {
      chunk(i, Value::object({{"role", "assistant"}, {"content", ""}}));
    }
  }

  void on_delta(size_t index, const Delta& delta) override {
    if (!stream_) return;
    const std::vector<TokenInfo>* tokens = &delta.tokens;
    for (const chat::StreamEvent& event : delta.events) {
      chunk(index, delta_json(index, event), Value(), event.kind == Kind::kReasoning ? nullptr : tokens);
      if (event.kind != Kind::kReasoning) tokens = nullptr;
    }
    // Tokens whose text is held back still are tokens of the content.
    if (tokens && !tokens->empty()) chunk(index, Value::object({{"content", ""}}), Value(), tokens);
  }

  void on_outcome(size_t index, const Outcome& outcome) override {
    if (index == 0) usage_.add_prompt(outcome);
    usage_.add_completion(outcome);
    if (stream_) {
      chunk(index, Value(Value::Object{}), Value(finish_reason(outcome)));
    } else {
      choices_[index].value = choice_json(index, outcome);
    }
  }

  void on_complete() override {
    if (stream_) {
      if (include_usage_) {
        Value last = envelope("chat.completion.chunk", {});
        last.set("usage", usage_json(usage_));
        exchange_->write(sse_data(py::dumps(last)));
      }
      exchange_->write(sse_data("[DONE]"));
      return exchange_->end_stream();
    }
    Value::Array choices;
    for (Choice& choice : choices_) choices.push_back(std::move(choice.value));
    Value answer = envelope("chat.completion", std::move(choices));
    answer.set("usage", usage_json(usage_));
    exchange_->respond({.body = py::dumps(answer)});
  }

  void on_error(const ApiError& error) override {
    if (!stream_) return exchange_->respond(error_response(Dialect::kOpenAi, error));
    exchange_->write(sse_data(error_json(Dialect::kOpenAi, error)));
    exchange_->end_stream();
  }

 private:
  using Kind = chat::StreamEvent::Kind;
  struct Choice {
    Value value;
    std::map<size_t, std::string> call_ids;
  };

  const std::string& call_id(size_t choice, size_t call) {
    std::string& id = choices_[choice].call_ids[call];
    if (id.empty()) id = random_id("call_");
    return id;
  }

  Value envelope(const char* object, Value::Array choices) const {
    return Value::object({{"id", Value(id_)},
                          {"object", object},
                          {"created", json_int(created_)},
                          {"model", Value(app_.options.model_name)},
                          {"choices", Value(std::move(choices))}});
  }

  void chunk(size_t index, Value delta, Value finish = {},
             const std::vector<TokenInfo>* tokens = nullptr) {
    Value choice = Value::object({{"index", json_int(static_cast<int64_t>(index))},
                                  {"delta", std::move(delta)},
                                  {"logprobs", Value()},
                                  {"finish_reason", std::move(finish)}});
    if (logprobs_ && tokens && !tokens->empty()) {
      choice.set("logprobs", logprobs_json(app_.tokenizer, *tokens));
    }
    Value::Array choices;
    choices.push_back(std::move(choice));
    Value out = envelope("chat.completion.chunk", std::move(choices));
    if (include_usage_) out.set("usage", Value());
    exchange_->write(sse_data(py::dumps(out)));
  }

  Value delta_json(size_t index, const chat::StreamEvent& event) {
    if (event.kind == Kind::kReasoning) {
      return Value::object({{"reasoning_content", Value(event.text)}});
    }
    if (event.kind == Kind::kContent) return Value::object({{"content", Value(event.text)}});
    Value call = Value::object({{"index", json_int(static_cast<int64_t>(event.index))}});
    if (event.kind == Kind::kToolCallBegin) {
      call.set("id", Value(call_id(index, event.index)));
      call.set("type", "function");
      call.set("function", Value::object({{"name", Value(event.text)}, {"arguments", ""}}));
    } else {
      call.set("function", Value::object({{"arguments", Value(event.text)}}));
    }
    return Value::object({{"tool_calls", Value::array({std::move(call)})}});
  }

  Value choice_json(size_t index, const Outcome& o) {
    const chat::AssistantMessage& m = o.message;
    Value message = Value::object({{"role", "assistant"}, {"content", Value(m.content)}});
    if (m.content.empty() && !m.tool_calls.empty()) message.set("content", Value());
    message.set("refusal", Value());
    if (!m.reasoning_content.empty()) message.set("reasoning_content", Value(m.reasoning_content));
    Value::Array calls;
    for (size_t i = 0; i < m.tool_calls.size(); ++i) {
      calls.push_back(
          Value::object({{"id", Value(call_id(index, i))},
                         {"type", "function"},
                         {"function", Value::object({{"name", Value(m.tool_calls[i].name)},
                                                     {"arguments",
                                                      Value(m.tool_calls[i].arguments)}})}}));
    }
    if (!calls.empty()) message.set("tool_calls", Value(std::move(calls)));
    return Value::object({{"index", json_int(static_cast<int64_t>(index))},
                          {"message", std::move(message)},
                          {"logprobs", logprobs_ ? logprobs_json(app_.tokenizer, o.tokens) : Value()},
                          {"finish_reason", Value(finish_reason(o))}});
  }

  App& app_;
  const bool include_usage_, logprobs_;
  const std::string id_ = random_id("chatcmpl-");
  const std::time_t created_ = std::time(nullptr);
  std::vector<Choice> choices_;
  UsageSum usage_;
};

}  // namespace

void chat_completions(App& app, const std::shared_ptr<Exchange>& exchange) {
  const auto body = read_body(exchange);
  if (!body) return;
  Problem problem;
  ChatRequest request = read_request(app, Fields(*body, "", problem));
  std::optional<GenerationSpec> spec;
  if (!problem.any()) spec = make_spec(app, std::move(request.conversation), problem);
  if (problem.any()) return exchange->respond(error_response(Dialect::kOpenAi, problem.error()));
  const auto writer = std::make_shared<ChatWriter>(app, exchange, request);
  const auto error = start_answers(app, exchange, repeat(std::move(*spec), request.n), writer);
  if (error) return exchange->respond(error_response(Dialect::kOpenAi, *error));
  writer->begin();
}

}  // namespace dsv4::server
