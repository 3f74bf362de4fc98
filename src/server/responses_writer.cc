#include "server/responses_writer.h"

#include "server/fields.h"
#include "server/sse.h"

namespace dsv4::server {

using py::Value;

ResponsesWriter::ResponsesWriter(App& app, std::shared_ptr<Exchange> exchange, bool stream,
                                 Value echoed)
    : AnswerWriter(std::move(exchange), stream), app_(app), echoed_(std::move(echoed)) {}

void ResponsesWriter::begin() {
  if (!stream_) return;
  exchange_->begin_stream(sse_head());
  send("response.created", {{"response", response_json("in_progress", nullptr)}});
  send("response.in_progress", {{"response", response_json("in_progress", nullptr)}});
}

void ResponsesWriter::on_delta(size_t, const Delta& delta) {
  for (const chat::StreamEvent& event : delta.events) read(event);
}

void ResponsesWriter::read(const chat::StreamEvent& event) {
  using Event = chat::StreamEvent::Kind;
  switch (event.kind) {
    case Event::kReasoning:
      open(Kind::kReasoning);
      break;
    case Event::kContent:
      open(Kind::kMessage);
      break;
    case Event::kToolCallBegin:
      close();
      return open(Kind::kCall, event.text);
    case Event::kToolCallArguments:
      break;
  }
  append(event.text);
}

void ResponsesWriter::open(Kind kind, std::string name) {
  if (is_open_ && items_.back().kind == kind) return;
  close();
  Item item{.kind = kind, .name = std::move(name)};
  item.id = random_id(kind == Kind::kReasoning ? "rs_" : kind == Kind::kMessage ? "msg_" : "fc_");
  if (kind == Kind::kCall) item.call_id = random_id("call_");
  items_.push_back(std::move(item));
  is_open_ = true;
  if (!stream_) return;
  // An item begins empty.
  Value added = item_json(items_.back(), "in_progress");
  if (kind != Kind::kCall) added.set("content", Value(Value::Array{}));
  send("response.output_item.added",
       {{"output_index", json_int(std::ssize(items_) - 1)}, {"item", std::move(added)}});
  if (kind == Kind::kCall) return;
  Value::Object members = place(true);
  members.push_back({"part", part_json(items_.back())});
  send("response.content_part.added", std::move(members));
}

void ResponsesWriter::append(const std::string& text) {
  Item& item = items_.back();
  item.text += text;
  if (!stream_) return;
  Value::Object members = place(item.kind != Kind::kCall);
  members.push_back({"delta", Value(text)});
  if (item.kind == Kind::kMessage) members.push_back({"logprobs", Value(Value::Array{})});
  send(item.kind == Kind::kCall        ? "response.function_call_arguments.delta"
       : item.kind == Kind::kReasoning ? "response.reasoning_text.delta"
                                       : "response.output_text.delta",
       std::move(members));
}

void ResponsesWriter::close() {
  if (!is_open_) return;
  is_open_ = false;
  if (!stream_) return;
  const Item& item = items_.back();
  Value::Object members = place(item.kind != Kind::kCall);
  if (item.kind == Kind::kCall) {
    members.push_back({"name", Value(item.name)});
    members.push_back({"arguments", Value(item.text)});
    send("response.function_call_arguments.done", std::move(members));
  } else {
    members.push_back({"text", Value(item.text)});
    if (item.kind == Kind::kMessage) members.push_back({"logprobs", Value(Value::Array{})});
    send(item.kind == Kind::kReasoning ? "response.reasoning_text.done"
                                       : "response.output_text.done",
         std::move(members));
    members = place(true);
    members.push_back({"part", part_json(item)});
    send("response.content_part.done", std::move(members));
  }
  send("response.output_item.done", {{"output_index", json_int(std::ssize(items_) - 1)},
                                     {"item", item_json(item, "completed")}});
}

void ResponsesWriter::on_outcome(size_t, const Outcome& outcome) {
  close();
  const char* const status = outcome.reason == StopReason::kLength ? "incomplete" : "completed";
  Value response = response_json(status, &outcome);
  if (!stream_) return exchange_->respond({.body = py::dumps(response)});
  send(std::string("response.") + status, {{"response", std::move(response)}});
  exchange_->end_stream();
}

void ResponsesWriter::on_error(const ApiError& error) {
  if (!stream_) return exchange_->respond(error_response(Dialect::kOpenAi, error));
  send("error", {{"code", Value("server_error")},
                 {"message", Value(error.message)},
                 {"param", Value()}});
  exchange_->end_stream();
}

Value ResponsesWriter::part_json(const Item& item) const {
  if (item.kind == Kind::kReasoning) {
    return Value::object({{"type", "reasoning_text"}, {"text", Value(item.text)}});
  }
  return Value::object({{"type", "output_text"},
                        {"text", Value(item.text)},
                        {"annotations", Value(Value::Array{})},
                        {"logprobs", Value(Value::Array{})}});
}

Value ResponsesWriter::item_json(const Item& item, std::string_view status) const {
  switch (item.kind) {
    case Kind::kReasoning:
      return Value::object({{"type", "reasoning"},
                            {"id", Value(item.id)},
                            {"summary", Value(Value::Array{})},
                            {"content", Value::array({part_json(item)})},
                            {"status", Value(status)}});
    case Kind::kCall:
      return Value::object({{"type", "function_call"},
                            {"id", Value(item.id)},
                            {"call_id", Value(item.call_id)},
                            {"name", Value(item.name)},
                            {"arguments", Value(item.text)},
                            {"status", Value(status)}});
    default:
      return Value::object({{"type", "message"},
                            {"id", Value(item.id)},
                            {"role", "assistant"},
                            {"content", Value::array({part_json(item)})},
                            {"status", Value(status)}});
  }
}

Value ResponsesWriter::response_json(std::string_view status, const Outcome* o) const {
  Value out = Value::object({{"id", Value(id_)},
                             {"object", "response"},
                             {"created_at", json_int(created_)},
                             {"status", Value(status)},
                             {"background", false},
                             {"error", Value()},
                             {"incomplete_details", Value()},
                             {"model", Value(app_.options.model_name)},
                             {"previous_response_id", Value()},
                             {"store", false},
                             {"truncation", "disabled"}});
  for (const py::Member& member : *echoed_.if_object()) out.set(member.key, member.value);
  Value::Array items;
  for (const Item& item : items_) {
    const bool cut = &item == &items_.back() && status == "incomplete";
    items.push_back(item_json(item, cut ? "incomplete" : "completed"));
  }
  out.set("output", Value(std::move(items)));
  if (status == "incomplete") {
    out.set("incomplete_details", Value::object({{"reason", "max_output_tokens"}}));
  }
  if (!o) {
    out.set("usage", Value());
    return out;
  }
  out.set("usage",
          Value::object(
              {{"input_tokens", json_int(o->prompt_tokens)},
               {"input_tokens_details", Value::object({{"cached_tokens", json_int(o->cached_tokens)}})},
               {"output_tokens", json_int(o->completion_tokens)},
               {"output_tokens_details",
                Value::object({{"reasoning_tokens", json_int(o->reasoning_tokens)}})},
               {"total_tokens", json_int(o->prompt_tokens + o->completion_tokens)}}));
  return out;
}

Value::Object ResponsesWriter::place(bool with_part) const {
  Value::Object out = {{"item_id", Value(items_.back().id)},
                       {"output_index", json_int(std::ssize(items_) - 1)}};
  if (with_part) out.push_back({"content_index", json_int(0)});
  return out;
}

void ResponsesWriter::send(std::string_view type, Value::Object members) {
  members.insert(members.begin(), {{"type", Value(type)}, {"sequence_number", json_int(sequence_++)}});
  exchange_->write(sse_event(type, py::dumps(Value(std::move(members)))));
}

}  // namespace dsv4::server
