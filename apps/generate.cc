#include "generate.h"

#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <utility>

#include "base/str.h"
#include "command.h"
#include "engine/sampler.h"
#include "progress.h"
#include "text/chat_format.h"
#include "text/stop_filter.h"

namespace dsv4::apps {
namespace {

Result<std::pair<int32_t, float>> parse_bias(const std::string& text) {
  int32_t id = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, id);
  if (error == std::errc() && rest != end && *rest == ':') {
    char* stop = nullptr;
    const float bias = std::strtof(rest + 1, &stop);
    if (stop == end && stop != rest + 1) return std::pair(id, bias);
  }
  return Status(Code::kInvalidArgument,
                cat("--logit-bias \"", text, "\": expected ID:BIAS, such as 1234:-5"));
}

Result<SamplingParams> sampling_of(const GenerateOptions& o, SamplingParams p) {
  p.temperature = o.temperature.value_or(p.temperature);
  p.top_k = o.top_k.value_or(p.top_k);
  p.top_p = o.top_p.value_or(p.top_p);
  p.min_p = o.min_p.value_or(p.min_p);
  p.repetition_penalty = o.repetition_penalty.value_or(p.repetition_penalty);
  p.presence_penalty = o.presence_penalty;
  p.frequency_penalty = o.frequency_penalty;
  p.seed = o.seed;
  p.logprobs = o.logprobs;
  for (const std::string& text : o.logit_bias) {
    DSV4_ASSIGN(const auto bias, parse_bias(text));
    p.logit_bias.push_back(bias);
  }
  return p;
}

// Collects one request's tokens; turns them to text as they come.
class AnswerSink : public EventSink {
 public:
  AnswerSink(const Tokenizer& tokenizer, const std::vector<std::string>& stops,
             const std::optional<ChatMode>& mode, int32_t eos, const Generator::Output& output)
      : detokenizer_(tokenizer), stops_(stops), eos_(eos), output_(output) {
    if (mode) parser_.emplace(mode->mode);
  }

  void on_prefill(RequestId, int64_t rows, int64_t total) noexcept override {
    if (progress_) progress_({.stage = "prefill", .done = rows, .total = total, .unit = "tokens"});
  }
  void on_token(RequestId, const TokenEvent& event) noexcept override {
    answer.tokens.push_back({event.token, event.logprob, {event.top.begin(), event.top.end()}});
    if (event.token == eos_) return;
    auto text = detokenizer_.push(event.token);
    if (text.ok()) {
      emit(stops_.push(*text));
    } else if (status.ok()) {
      status = text.status();
    }
  }
  void on_finish(RequestId, FinishReason reason, const Usage& usage) noexcept override {
    answer.usage = usage;
    answer.finish_reason = stops_.found() ? "stop" : finish_reason_name(reason);
    emit(stops_.push(detokenizer_.finish()));
    emit(stops_.finish());
    if (parser_) {
      if (reason == FinishReason::kEos) parser_->feed(chat::kEos, events_);
      auto message = parser_->finish(events_);
      flush();
      // An answer that was cut, or left the format, is what could be read of it.
      answer.message = message.ok() ? std::move(message).value() : parser_->so_far();
    } else {
      answer.message.content = answer.text;
    }
    done = true;
  }
  void on_error(RequestId, const Status& error) noexcept override {
    status = error;
    done = true;
  }

  bool stop_found() const { return stops_.found(); }

  Answer answer;
  Status status;
  bool done = false;

 private:
  void emit(const std::string& text) {
    if (text.empty()) return;
    answer.text += text;
    if (parser_) {
      parser_->feed(text, events_);
    } else {
      events_.push_back({chat::StreamEvent::Kind::kContent, text, 0});
    }
    flush();
  }
  void flush() {
    for (const chat::StreamEvent& event : events_) output_(event);
    events_.clear();
  }

  Detokenizer detokenizer_;
  StopFilter stops_;
  std::optional<chat::StreamParser> parser_;
  const int32_t eos_;
  const Generator::Output& output_;
  const ProgressSink progress_ = terminal_progress();
  std::vector<chat::StreamEvent> events_;
};

}  // namespace

void add_generate_options(Command c, GenerateOptions& o) {
  c.option("-m,--model", o.model, "Folder of the checkpoint").required();
  c.option("-n,--max-tokens", o.max_tokens, "Longest answer (default: until the context ends)")
      .positive();
  c.option("--device", o.device, "Backend: auto, or a name that `dsv4 version` lists")
      .show_default();
  add_cache_rows(c, o.cache_rows);
  c.option("--ctx", o.context, "Longest prompt and answer together, in tokens (default: 8192)")
      .positive();
  c.option("--chunk", o.chunk, "Prompt tokens per step").positive().show_default();
  c.option("--system", o.system, "A system message before the conversation");
  c.option("--thinking", o.thinking, "Reasoning before the answer: off, high or max")
      .one_of({"off", "high", "max"})
      .show_default();
  c.flag("-q,--quiet", o.quiet, "No memory plan and no statistics");

  const char* const group = "Sampling (defaults: generation_config.json)";
  c.option("--temperature", o.temperature, "0 = always the most likely token").group(group);
  c.option("--top-k", o.top_k, "Of the k most likely tokens only; 0 = off").group(group);
  c.option("--top-p", o.top_p, "Of the most likely that make up p; 1 = off").group(group);
  c.option("--min-p", o.min_p, "Only tokens with p times the best probability; 0 = off")
      .group(group);
  c.option("--repetition-penalty", o.repetition_penalty,
           "Divides logits of tokens in prompt and answer; 1 = off")
      .group(group);
  c.option("--presence-penalty", o.presence_penalty, "Less of what the answer has already")
      .group(group);
  c.option("--frequency-penalty", o.frequency_penalty, "The same, for each occurrence")
      .group(group);
  c.option("--logit-bias", o.logit_bias, "ID:BIAS added to a token's logit; may be repeated")
      .group(group);
  c.option("--seed", o.seed, "The same seed gives the same answer").group(group);
  c.option("--stop", o.stop, "End the answer before this text; may be repeated")
      .not_empty()
      .group(group);
}

ChatMode chat_mode(const std::string& thinking) {
  if (thinking == "off") return {};
  return {chat::ThinkingMode::kThinking, thinking};
}

Generator::Generator(const GenerateOptions& options, std::unique_ptr<Engine> engine,
                     Tokenizer tokenizer, SamplingParams sampling)
    : options_(options),
      engine_(std::move(engine)),
      tokenizer_(std::move(tokenizer)),
      sampling_(std::move(sampling)) {}

Result<std::unique_ptr<Generator>> Generator::load(const GenerateOptions& o) {
  // What is wrong with the options is said before anything is loaded.
  DSV4_ASSIGN(const SamplingParams options, sampling_of(o, {}));
  DSV4_TRY(validate_sampling(options, std::numeric_limits<int32_t>::max()));
  DSV4_ASSIGN(Tokenizer tokenizer, Tokenizer::load(o.model + "/tokenizer.json"));
  EngineOptions e;
  e.model_dir = o.model;
  e.device = o.device;
  e.cache_rows = o.cache_rows;
  e.context = o.context;
  e.prefill_chunk = o.chunk;
  if (const ProgressSink sink = terminal_progress()) {
    e.progress = [sink](const LoadProgress& p) { sink({p.stage, p.done, p.total, p.unit}); };
  }
  if (!o.quiet)
    e.on_plan = [](const MemoryPlan& plan) { std::fputs(to_text(plan).c_str(), stderr); };
  DSV4_ASSIGN(auto engine, Engine::load(e));
  DSV4_ASSIGN(SamplingParams sampling, sampling_of(o, engine->info().sampling));
  return std::unique_ptr<Generator>(
      new Generator(o, std::move(engine), std::move(tokenizer), std::move(sampling)));
}

Result<Answer> Generator::answer(const std::string& prompt, const std::optional<ChatMode>& mode,
                                 SessionId session, const InterruptFlag& interrupt,
                                 const Output& output) {
  Request request;
  DSV4_ASSIGN(request.prompt, tokenizer_.encode(prompt));
  request.sampling = sampling_;
  request.max_tokens = options_.max_tokens;
  request.session = session;
  AnswerSink sink(tokenizer_, options_.stop, mode, engine_->info().eos_token, output);
  DSV4_ASSIGN(const RequestId id, engine_->submit(std::move(request), sink));
  while (!sink.done) {
    if (interrupt.raised() || sink.stop_found() || !sink.status.ok()) {
      sink.answer.interrupted = interrupt.raised();
      DSV4_TRY(engine_->cancel(id));
    }
    const auto report = engine_->step();
    if (!report.ok()) return report.status();
  }
  DSV4_TRY(sink.status);
  return std::move(sink.answer);
}

Printer::Printer() : terminal_(isatty(STDOUT_FILENO) == 1) {}

void Printer::style(bool dim) {
  if (!terminal_ || dim == dim_) return;
  std::fputs(dim ? "\033[2m" : "\033[0m", stdout);
  dim_ = dim;
}

void Printer::print(const chat::StreamEvent& event) {
  using Kind = chat::StreamEvent::Kind;
  std::string text = event.text;
  if (text.empty()) return;
  style(event.kind == Kind::kReasoning);
  if (event.kind == Kind::kReasoning) {
    reasoned_ = true;
  } else if (reasoned_) {
    std::fputs(last_ == '\n' ? "\n" : "\n\n", stdout);
    reasoned_ = false;
  }
  if (event.kind == Kind::kToolCallBegin)
    text = cat(last_ == '\n' ? "" : "\n", "[calls ", text, "] ");
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
  last_ = text.back();
}

void Printer::finish() {
  style(false);
  if (last_ != '\n') std::fputc('\n', stdout);
  std::fflush(stdout);
  last_ = '\n';
  reasoned_ = false;
}

void print_speed(const Answer& a) {
  const auto rate = [](int64_t n, double seconds) {
    return seconds > 0 ? static_cast<double>(n) / seconds : 0.0;
  };
  const Usage& u = a.usage;
  const int64_t run = u.prompt_tokens - u.cached_tokens;
  std::fprintf(stderr, "prefill %lld tokens", static_cast<long long>(run));
  if (u.cached_tokens > 0) {
    std::fprintf(stderr, " (%lld more from the cache)", static_cast<long long>(u.cached_tokens));
  }
  std::fprintf(stderr, ", %.1f tok/s; decode %lld tokens, %.1f tok/s; %s\n",
               rate(run, u.prefill_seconds), static_cast<long long>(u.completion_tokens),
               rate(u.completion_tokens - 1, u.decode_seconds), a.finish_reason.c_str());
}

}  // namespace dsv4::apps
