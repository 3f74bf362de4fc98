// A conversation in the encoder's terms, whatever API it came through, and what is asked of the
// answer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/app.h"
#include "server/fields.h"
#include "server/generation.h"
#include "text/chat.h"
#include "text/py_json.h"

namespace dsv4::server {

struct ToolChoice {
  enum class Kind { kAuto, kNone, kRequired, kNamed };
  Kind kind = Kind::kAuto;
  std::string name;  // kNamed
};

struct Thinking {
  bool on = false;
  std::string effort = "high";    // "high" or "max"
  std::optional<int64_t> budget;  // tokens of reasoning
};

struct Conversation {
  py::Value::Array messages;  // system, user, assistant, tool; see chat::encode
  py::Value::Array tools;     // {"type": "function", "function": {name, description, parameters}}
  ToolChoice tool_choice;
  Thinking thinking;
  SamplingParams sampling;
  std::vector<std::string> stops;
  int64_t max_tokens = -1;
  bool ignore_eos = false;  // go on until max_tokens, for measurements
  OutputFormat format;
  bool parallel_calls = true;
};

// "off", "high" or "max", as --thinking takes it.
Thinking thinking_of(std::string_view name);

// The prompt's tokens and how the answer is read. A last message of the assistant is continued.
// Errors are reported to `problem`.
std::optional<GenerationSpec> make_spec(App& app, Conversation conversation, Problem& problem);

// Text of a message's content: a string, or a list of parts of which all are text of one of the
// `text_types`; joined by an empty line, as the encoder joins them.
std::string read_text(const Fields& message, std::string_view key,
                      std::initializer_list<std::string_view> text_types);

// `model` of a request: one that this server has. A missing one is ours.
void check_model(const App& app, const Fields& body);

// temperature, top_p, top_k, min_p, penalties, seed, logit_bias as OpenAI names them; the defaults
// are those of the model's generation_config.json.
SamplingParams read_sampling(const App& app, const Fields& body);

// A function tool in the encoder's format, checked.
void check_tool(const Fields& tool);

// OpenAI's tool_choice: "auto", "none", "required", or an object for one tool: its name is a field
// of that object's member `holder`, or of the object itself where `holder` is "".
ToolChoice read_tool_choice(const Fields& body, std::string_view holder);

}  // namespace dsv4::server
