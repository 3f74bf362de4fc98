// dsv4 run: one prompt, one answer.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "base/str.h"
#include "command.h"
#include "generate.h"

namespace dsv4::apps {
namespace {

using nlohmann::ordered_json;

struct Options {
  GenerateOptions generate;
  std::string prompt, file, dash, messages;
  bool raw = false, json = false;
};

Result<std::string> read_prompt(const Options& o) {
  if (o.file.empty() && o.dash.empty()) return o.prompt;
  std::stringstream text;
  if (!o.dash.empty()) {
    text << std::cin.rdbuf();
  } else {
    std::ifstream file(o.file, std::ios::binary);
    if (!file) return Status(Code::kNotFound, cat(o.file, ": cannot be read"));
    text << file.rdbuf();
  }
  std::string prompt = text.str();
  // The line feed that ends a text file is not part of the question.
  if (!o.raw && prompt.ends_with('\n')) prompt.pop_back();
  return prompt;
}

Result<std::string> format_prompt(const Options& o, const ChatMode& mode, std::string prompt) {
  py::Value::Array messages;
  const auto add = [&](const char* role, std::string content) {
    messages.push_back(py::Value::object({{"role", role}, {"content", std::move(content)}}));
  };
  if (!o.generate.system.empty()) add("system", o.generate.system);
  add("user", std::move(prompt));
  return chat::encode(messages, {.thinking_mode = mode.mode, .reasoning_effort = mode.effort});
}

// The conversation of a file in the OpenAI format: messages, or {"messages", "tools"}.
Result<std::string> read_messages(const Options& o, const ChatMode& mode) {
  std::stringstream text;
  std::ifstream file(o.messages, std::ios::binary);
  if (!file) return Status(Code::kNotFound, cat(o.messages, ": cannot be read"));
  text << file.rdbuf();
  const auto format = [&]() -> Result<std::string> {
    DSV4_ASSIGN(const py::Value root, py::loads(text.str()));
    const py::Value* list = root.if_object() ? root.find("messages") : &root;
    if (!list || !list->if_array() || list->if_array()->empty()) {
      return Status(Code::kInvalidArgument,
                    "expected an array of messages, or {\"messages\": [...], \"tools\": [...]}");
    }
    py::Value::Array messages = *list->if_array();
    if (const py::Value* tools = root.find("tools"); tools && tools->truthy()) {
      messages = chat::attach_tools(std::move(messages), *tools);
    }
    return chat::encode(messages, {.thinking_mode = mode.mode, .reasoning_effort = mode.effort});
  };
  auto prompt = format();
  if (!prompt.ok()) return prompt.status().with_context(o.messages);
  return prompt;
}

ordered_json token_json(const Tokenizer& tokenizer, int32_t id, float logprob) {
  return {{"id", id},
          {"token", std::string(tokenizer.token_bytes(id).value_or(""))},
          {"logprob", logprob}};
}

void print_json(const Options& o, const Tokenizer& tokenizer, const Answer& a) {
  ordered_json out;
  out["text"] = a.text;
  if (!o.raw) {
    out["content"] = a.message.content;
    out["reasoning_content"] = a.message.reasoning_content;
    out["tool_calls"] = ordered_json::array();
    for (const chat::ToolCall& call : a.message.tool_calls) {
      out["tool_calls"].push_back({{"name", call.name}, {"arguments", call.arguments}});
    }
  }
  out["finish_reason"] = a.finish_reason;
  out["tokens"] = ordered_json::array();
  for (const Answer::Token& t : a.tokens) out["tokens"].push_back(t.id);
  if (o.generate.logprobs >= 0) {
    out["logprobs"] = ordered_json::array();
    for (const Answer::Token& t : a.tokens) {
      ordered_json row = token_json(tokenizer, t.id, t.logprob.value_or(0));
      row["top"] = ordered_json::array();
      for (const TokenLogprob& p : t.top)
        row["top"].push_back(token_json(tokenizer, p.token, p.logprob));
      out["logprobs"].push_back(std::move(row));
    }
  }
  out["usage"] = {{"prompt_tokens", a.usage.prompt_tokens},
                  {"completion_tokens", a.usage.completion_tokens},
                  {"prefill_seconds", a.usage.prefill_seconds},
                  {"decode_seconds", a.usage.decode_seconds},
                  {"seed", a.usage.seed}};
  // A token may be a part of a character.
  std::printf("%s\n", out.dump(-1, ' ', false, ordered_json::error_handler_t::replace).c_str());
}

Status run(const Options& o, int& exit_code) {
  std::optional<ChatMode> mode;
  if (!o.raw) mode = chat_mode(o.generate.thinking);
  std::string prompt;
  if (!o.messages.empty()) {
    DSV4_ASSIGN(prompt, read_messages(o, *mode));
  } else {
    DSV4_ASSIGN(prompt, read_prompt(o));
    if (mode) {
      DSV4_ASSIGN(prompt, format_prompt(o, *mode, std::move(prompt)));
    }
  }
  DSV4_ASSIGN(const auto generator, Generator::load(o.generate));
  Printer printer;
  const InterruptFlag interrupt(/*once=*/true);
  DSV4_ASSIGN(const Answer answer,
              generator->answer(prompt, mode, 0, interrupt, [&](const chat::StreamEvent& event) {
                if (!o.json) printer.print(event);
              }));
  if (o.json) {
    print_json(o, generator->tokenizer(), answer);
  } else {
    printer.finish();
  }
  if (!o.generate.quiet) print_speed(answer);
  exit_code = answer.interrupted ? kExitInterrupted : kExitOk;
  return {};
}

}  // namespace

void add_run(Command app, int& exit_code) {
  auto o = std::make_shared<Options>();
  Command cmd = app.subcommand("run", "Answer one prompt");
  add_generate_options(cmd, o->generate);
  Command source = cmd.one_of_options("prompt");
  source.option("-p,--prompt", o->prompt, "The prompt");
  source.option("-f,--file", o->file, "A file with the prompt");
  source.option("stdin", o->dash, "- reads the prompt from standard input").one_of({"-"});
  const Option messages = source.option(
      "--messages", o->messages,
      "A JSON file with a conversation in the OpenAI format: [messages], or {messages, tools}");
  cmd.flag("--raw", o->raw,
           "Continue the text as it is: no conversation format, no first token added")
      .excludes(messages);
  cmd.find_option("--system").excludes(messages);
  cmd.flag("--json", o->json, "One JSON object when the answer is complete, instead of text");
  cmd.option("--logprobs", o->generate.logprobs,
             "With --json: log probabilities of each token and of the N best")
      .not_negative();
  cmd.footer(
      "The answer goes to standard output as it comes; memory plan, progress and speed go to\n"
      "standard error. Ctrl-C ends the answer and exits with 130.\n\n"
      "  dsv4 run -m models/demo -p 'What is a span?' --temperature 0.6 -n 200\n"
      "  git diff | dsv4 run -m models/demo --system 'Review this change.' --thinking high -\n"
      "  dsv4 run -m models/demo --messages models/demo/examples/tool_call.json");
  cmd.run([o, &exit_code] {
    const Status status = run(*o, exit_code);
    if (!status.ok()) exit_code = fail(status);
  });
}

}  // namespace dsv4::apps
