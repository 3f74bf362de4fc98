// What `run` and `chat` share: options, loading, and one answer as a stream of text.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "command_line.h"
#include "dsv4/engine.h"
#include "interrupt.h"
#include "text/chat.h"
#include "text/stream_parser.h"
#include "text/tokenizer.h"

namespace dsv4::apps {

struct GenerateOptions {
  std::string model, device = "auto", cache_rows = "auto", system;
  std::string thinking = "off";  // off, high, max
  int64_t max_tokens = -1, context = 0, chunk = 256;
  // Unset: what generation_config.json says.
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<int32_t> top_k;
  std::optional<uint64_t> seed;
  float presence_penalty = 0, frequency_penalty = 0;
  std::vector<std::string> logit_bias;  // "id:bias"
  std::vector<std::string> stop;
  int32_t logprobs = -1;
  bool quiet = false;
};
void add_generate_options(Command command, GenerateOptions& options);

// How the prompt is formatted and the completion read; nullopt: neither, plain text.
struct ChatMode {
  chat::ThinkingMode mode = chat::ThinkingMode::kChat;
  std::optional<std::string> effort;
};
ChatMode chat_mode(const std::string& thinking);

struct Answer {
  struct Token {
    int32_t id = 0;
    std::optional<float> logprob;
    std::vector<TokenLogprob> top;
  };
  std::vector<Token> tokens;
  std::string text;  // the completion without its end token
  chat::AssistantMessage message;
  std::string finish_reason;
  Usage usage;
  bool interrupted = false;
};

class Generator {
 public:
  static Result<std::unique_ptr<Generator>> load(const GenerateOptions& options);

  using Output = std::function<void(const chat::StreamEvent&)>;
  // Runs `prompt` to its end, to a stop string, or until `interrupt` is raised.
  Result<Answer> answer(const std::string& prompt, const std::optional<ChatMode>& mode,
                        SessionId session, const InterruptFlag& interrupt, const Output& output);

  Engine& engine() { return *engine_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  Generator(const GenerateOptions& options, std::unique_ptr<Engine> engine, Tokenizer tokenizer,
            SamplingParams sampling);

  const GenerateOptions options_;
  std::unique_ptr<Engine> engine_;
  Tokenizer tokenizer_;
  SamplingParams sampling_;
};

// Writes events to standard output as they come; reasoning is dimmed on a terminal.
class Printer {
 public:
  Printer();
  void print(const chat::StreamEvent& event);
  // Ends the answer's last line.
  void finish();

 private:
  void style(bool dim);
  const bool terminal_;
  bool dim_ = false;
  bool reasoned_ = false;  // content needs a line of its own
  char last_ = '\n';
};

// "prefill 12 tokens, 30.1 tok/s; decode 20 tokens, 5.2 tok/s; eos" on standard error.
void print_speed(const Answer& answer);

}  // namespace dsv4::apps
