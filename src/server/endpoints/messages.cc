// POST /v1/messages: Anthropic's API.
#include "server/anthropic_request.h"
#include "server/answers.h"
#include "server/endpoints/endpoints.h"
#include "server/ids.h"
#include "server/request_body.h"
#include "server/sse.h"

namespace dsv4::server {
namespace {

using py::Value;

const char* stop_reason(const Outcome& o) {
  switch (o.reason) {
    case StopReason::kLength:
      return "max_tokens";
    case StopReason::kStopString:
      return "stop_sequence";
    case StopReason::kToolCalls:
      return "tool_use";
    default:
      return "end_turn";
  }
}

// What the cache gave is not part of input_tokens here.
Value usage_json(const Outcome& o) {
  return Value::object({{"input_tokens", json_int(o.prompt_tokens - o.cached_tokens)},
                        {"cache_creation_input_tokens", json_int(0)},
                        {"cache_read_input_tokens", json_int(o.cached_tokens)},
                        {"output_tokens", json_int(o.completion_tokens)}});
}

class MessageWriter final : public AnswerWriter {
 public:
  MessageWriter(App& app, std::shared_ptr<Exchange> exchange, bool stream, int64_t prompt_tokens)
      : AnswerWriter(std::move(exchange), stream), app_(app), prompt_tokens_(prompt_tokens) {}

  void begin() {
    if (!stream_) return;
    exchange_->begin_stream(sse_head());
    Outcome nothing;
    nothing.prompt_tokens = prompt_tokens_;
    send("message_start",
         {{"message", envelope(Value(Value::Array{}), Value(), Value(), usage_json(nothing))}});
    send("ping", {});
  }

  void on_delta(size_t, const Delta& delta) override {
    if (!stream_) return;
    for (const chat::StreamEvent& event : delta.events) {
      if (event.kind == Kind::kReasoning) {
        open("thinking", {{"thinking", ""}, {"signature", ""}});
        block_delta({{"type", "thinking_delta"}, {"thinking", Value(event.text)}});
      } else if (event.kind == Kind::kContent) {
        open("text", {{"text", ""}});
        block_delta({{"type", "text_delta"}, {"text", Value(event.text)}});
      } else if (event.kind == Kind::kToolCallBegin) {
        close();
        open("tool_use", {{"id", Value(random_id("toolu_"))},
                          {"name", Value(event.text)},
                          {"input", Value(Value::Object{})}});
      } else {
        block_delta({{"type", "input_json_delta"}, {"partial_json", Value(event.text)}});
      }
    }
  }

  void on_outcome(size_t, const Outcome& o) override {
    const Value stop_string = o.stop_string.empty() ? Value() : Value(o.stop_string);
    if (!stream_) {
      const Value answer = envelope(content_json(o), stop_reason(o), stop_string, usage_json(o));
      return exchange_->respond({.body = py::dumps(answer)});
    }
    close();
    send("message_delta", {{"delta", Value::object({{"stop_reason", stop_reason(o)},
                                                    {"stop_sequence", stop_string}})},
                           {"usage", usage_json(o)}});
    send("message_stop", {});
    exchange_->end_stream();
  }
  void on_complete() override {}

  void on_error(const ApiError& error) override {
    if (!stream_) return exchange_->respond(error_response(Dialect::kAnthropic, error));
    exchange_->write(sse_event("error", error_json(Dialect::kAnthropic, error)));
    exchange_->end_stream();
  }

 private:
  using Kind = chat::StreamEvent::Kind;

  Value envelope(Value content, Value reason, Value stop_string, Value usage) const {
    return Value::object({{"id", Value(id_)},
                          {"type", "message"},
                          {"role", "assistant"},
                          {"model", Value(app_.options.model_name)},
                          {"content", std::move(content)},
                          {"stop_reason", std::move(reason)},
                          {"stop_sequence", std::move(stop_string)},
                          {"usage", std::move(usage)}});
  }

  static Value content_json(const Outcome& o) {
    Value::Array blocks;
    if (!o.message.reasoning_content.empty()) {
      blocks.push_back(Value::object({{"type", "thinking"},
                                      {"thinking", Value(o.message.reasoning_content)},
                                      {"signature", ""}}));
    }
    if (!o.message.content.empty()) {
      blocks.push_back(Value::object({{"type", "text"}, {"text", Value(o.message.content)}}));
    }
    for (const chat::ToolCall& call : o.message.tool_calls) {
      // A call that was cut off has no arguments that could be read.
      auto input = py::loads(call.arguments);
      blocks.push_back(Value::object(
          {{"type", "tool_use"},
           {"id", Value(random_id("toolu_"))},
           {"name", Value(call.name)},
           {"input", input.ok() ? std::move(input).value() : Value(Value::Object{})}}));
    }
    return Value(std::move(blocks));
  }

  void send(const char* type, Value::Object members) {
    members.insert(members.begin(), {"type", type});
    exchange_->write(sse_event(type, py::dumps(Value(std::move(members)))));
  }
  void open(const char* type, Value::Object members) {
    if (open_type_ == type) return;
    close();
    open_type_ = type;
    members.insert(members.begin(), {"type", type});
    send("content_block_start",
         {{"index", json_int(block_)}, {"content_block", Value(std::move(members))}});
  }
  void block_delta(Value::Object members) {
    send("content_block_delta",
         {{"index", json_int(block_)}, {"delta", Value(std::move(members))}});
  }
  void close() {
    if (open_type_.empty()) return;
    open_type_.clear();
    send("content_block_stop", {{"index", json_int(block_++)}});
  }

  App& app_;
  const int64_t prompt_tokens_;
  const std::string id_ = random_id("msg_");
  std::string open_type_;  // of the block that is being sent; empty: none
  int64_t block_ = 0;
};

}  // namespace

void messages(App& app, const std::shared_ptr<Exchange>& exchange) {
  const auto body = read_body(exchange);
  if (!body) return;
  Problem problem;
  const Fields fields(*body, "", problem);
  Conversation conversation = read_anthropic_request(app, fields);
  const auto max_tokens = fields.integer("max_tokens", 1, int64_t{1} << 40);
  if (!max_tokens) fields.report("max_tokens", "expected a number of tokens");
  conversation.max_tokens = max_tokens.value_or(1);
  const bool stream = fields.boolean("stream").value_or(false);
  std::optional<GenerationSpec> spec;
  if (!problem.any()) spec = make_spec(app, std::move(conversation), problem);
  if (problem.any()) return exchange->respond(error_response(Dialect::kAnthropic, problem.error()));
  const auto writer =
      std::make_shared<MessageWriter>(app, exchange, stream, std::ssize(spec->request.prompt));
  const auto error = start_answers(app, exchange, {std::move(*spec)}, writer);
  if (error) {
    return exchange->respond(error_response(Dialect::kAnthropic, *error));
  }
  writer->begin();
}

}  // namespace dsv4::server
