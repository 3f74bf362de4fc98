// dsv4 chat: a conversation.
#include <cstdio>
#include <memory>
#include <string>

#include "base/str.h"
#include "command.h"
#include "generate.h"
#include "line_editor.h"

namespace dsv4::apps {
namespace {

constexpr const char* kHelp =
    "/clear              forget the conversation\n"
    "/thinking off|high|max   reasoning before the answer\n"
    "/help               this\n"
    "/quit               leave (also Ctrl-D)\n"
    "Ctrl-C stops the answer.\n";

class Conversation {
 public:
  Conversation(Generator& generator, const GenerateOptions& options)
      : generator_(generator), options_(options), thinking_(options.thinking) {
    clear();
  }

  // False when the user wants to leave.
  bool handle(const std::string& line) {
    if (line.empty()) return true;
    if (line[0] == '/') return command(line);
    const Status status = turn(line);
    if (!status.ok()) fail(status);
    return true;
  }

 private:
  void clear() {
    messages_.clear();
    if (!options_.system.empty()) add("system", options_.system);
  }
  void add(const char* role, const std::string& content) {
    messages_.push_back(py::Value::object({{"role", role}, {"content", content}}));
  }

  bool command(const std::string& line) {
    const std::string word = line.substr(0, line.find(' '));
    const std::string argument = word.size() < line.size() ? line.substr(word.size() + 1) : "";
    if (word == "/quit" || word == "/exit") return false;
    if (word == "/clear") {
      clear();
    } else if (word == "/help") {
      std::fputs(kHelp, stdout);
    } else if (word == "/thinking" &&
               (argument == "off" || argument == "high" || argument == "max")) {
      thinking_ = argument;
    } else {
      std::fprintf(stderr, "dsv4: %s: expected /clear, /thinking off|high|max, /help or /quit\n",
                   line.c_str());
    }
    return true;
  }

  // The whole conversation is encoded anew; the session runs only what the cache does not hold.
  Status turn(const std::string& line) {
    add("user", line);
    auto answer = ask();
    if (!answer.ok()) {
      messages_.pop_back();  // the question stays unasked, so that it can be asked again
      return answer.status();
    }
    py::Value message =
        py::Value::object({{"role", "assistant"}, {"content", answer->message.content}});
    if (thinking_ != "off") message.set("reasoning_content", answer->message.reasoning_content);
    messages_.push_back(std::move(message));
    if (!options_.quiet) print_speed(*answer);
    return {};
  }

  Result<Answer> ask() {
    const ChatMode mode = chat_mode(thinking_);
    DSV4_ASSIGN(
        const std::string prompt,
        chat::encode(messages_, {.thinking_mode = mode.mode, .reasoning_effort = mode.effort}));
    Printer printer;
    const InterruptFlag interrupt(/*once=*/false);
    auto answer = generator_.answer(prompt, mode, session_, interrupt,
                                    [&](const chat::StreamEvent& event) { printer.print(event); });
    printer.finish();
    return answer;
  }

  Generator& generator_;
  const GenerateOptions& options_;
  std::string thinking_;
  const SessionId session_ = generator_.engine().open_session();
  py::Value::Array messages_;
};

Status run(const GenerateOptions& options) {
  DSV4_ASSIGN(const auto generator, Generator::load(options));
  LineEditor editor("> ");
  Conversation conversation(*generator, options);
  while (const auto line = editor.next()) {
    if (!conversation.handle(*line)) break;
  }
  return {};
}

}  // namespace

void add_chat(Command app, int& exit_code) {
  auto options = std::make_shared<GenerateOptions>();
  Command cmd = app.subcommand("chat", "Talk with the model");
  add_generate_options(cmd, *options);
  cmd.footer(cat("A line is a message. Commands:\n", kHelp,
                 "\nWhere standard input is not a terminal, each of its lines is a message.\n\n"
                 "  dsv4 chat -m models/demo --thinking high"));
  cmd.run([options, &exit_code] {
    const Status status = run(*options);
    exit_code = status.ok() ? kExitOk : fail(status);
  });
}

}  // namespace dsv4::apps
