// The answer of /v1/responses, whole or as its named events.
#pragma once

#include <ctime>
#include <memory>
#include <string>

#include "server/answers.h"
#include "server/app.h"
#include "server/ids.h"
#include "text/py_json.h"

namespace dsv4::server {

class ResponsesWriter final : public AnswerWriter {
 public:
  // `echoed`: an object with what the answer repeats of the request.
  ResponsesWriter(App& app, std::shared_ptr<Exchange> exchange, bool stream, py::Value echoed);

  void begin();
  void on_delta(size_t index, const Delta& delta) override;
  void on_outcome(size_t index, const Outcome& outcome) override;
  void on_complete() override {}
  void on_error(const ApiError& error) override;

 private:
  enum class Kind { kNone, kReasoning, kMessage, kCall };
  // One item of the output: a stretch of reasoning, the message, or a call.
  struct Item {
    Kind kind = Kind::kNone;
    std::string id, call_id, name, text;  // text: or the arguments of a call
  };

  void read(const chat::StreamEvent& event);
  void open(Kind kind, std::string name = {});
  void append(const std::string& text);
  void close();

  py::Value item_json(const Item& item, std::string_view status) const;
  py::Value part_json(const Item& item) const;
  py::Value response_json(std::string_view status, const Outcome* outcome) const;
  void send(std::string_view type, py::Value::Object members);
  // Members that say which part of which item an event is about.
  py::Value::Object place(bool with_part) const;

  App& app_;
  const py::Value echoed_;
  const std::string id_ = random_id("resp_");
  const std::time_t created_ = std::time(nullptr);
  std::vector<Item> items_;  // the last one is open while is_open_
  bool is_open_ = false;
  int64_t sequence_ = 0;
};

}  // namespace dsv4::server
