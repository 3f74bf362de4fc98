#include "eval/evaluate.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>
#include <utility>

#include "base/str.h"
#include "engine/engine_core.h"
#include "eval/score.h"
#include "text/chat_format.h"

namespace dsv4::eval {
namespace {

constexpr int64_t kSlack = 32;  // tokens an answer may be longer than expected

struct Turn {
  std::vector<int32_t> prompt;
  int64_t max_tokens = 0;
};

// One turn's reply as it comes.
class Reply : public EventSink {
 public:
  void on_token(RequestId, const TokenEvent& event) noexcept override {
    tokens.push_back(event.token);
  }
  void on_finish(RequestId, FinishReason, const Usage&) noexcept override { done = true; }
  void on_error(RequestId, const Status& error) noexcept override {
    status = error;
    done = true;
  }

  std::vector<int32_t> tokens;
  Status status;
  bool done = false;
};

// Runs turns through one engine, a few at a time, and gives their texts in order.
class Decoder {
 public:
  Decoder(EngineCore& engine, const Tokenizer& tokenizer, int64_t at_once)
      : engine_(engine), tokenizer_(tokenizer), at_once_(at_once) {}

  Result<std::vector<std::string>> run(std::vector<Turn> turns, TaskReport& report,
                                       const std::function<void(int64_t)>& finished) {
    std::deque<Reply> replies(turns.size());
    size_t next = 0;
    int64_t ended = 0, running = 0;
    while (ended < std::ssize(turns)) {
      for (; next < turns.size() && running < at_once_; ++next, ++running) {
        report.prompt_tokens += std::ssize(turns[next].prompt);
        Request request;
        request.prompt = std::move(turns[next].prompt);
        request.sampling.temperature = 0;
        request.max_tokens = turns[next].max_tokens;
        request.use_prefix_cache = false;  // an item's figure does not depend on the one before
        DSV4_TRY(engine_.submit(std::move(request), replies[next]).status());
      }
      DSV4_TRY(engine_.step().status());
      const int64_t now = std::count_if(replies.begin(), replies.end(),
                                        [](const Reply& reply) { return reply.done; });
      if (now == ended) continue;
      running -= now - ended;
      ended = now;
      finished(ended);
    }
    std::vector<std::string> texts;
    for (const Reply& reply : replies) {
      DSV4_TRY(reply.status);
      report.completion_tokens += std::ssize(reply.tokens);
      DSV4_ASSIGN(std::string text, tokenizer_.decode(reply.tokens));
      texts.push_back(std::move(text));
    }
    return texts;
  }

 private:
  EngineCore& engine_;
  const Tokenizer& tokenizer_;
  const int64_t at_once_;
};

double share(int64_t hits, int64_t items) {
  return items ? static_cast<double>(hits) / static_cast<double>(items) : 0.0;
}

// The call as the model would write it: for the report, and for the length of an answer.
std::string expected_call(const Item& item) {
  return cat(item.tool_name, " ", py::dumps(item.tool_arguments));
}

class Evaluation {
 public:
  Evaluation(const LoadedModel& loaded, const OpTable& ops, const Tokenizer& tokenizer,
             const EvalOptions& options, const ProgressSink& progress)
      : loaded_(loaded), ops_(ops), tokenizer_(tokenizer), options_(options), progress_(progress) {}

  Result<TaskReport> run(const Task& task) {
    TaskReport report;
    report.task = task.name;
    report.items = std::ssize(task.items);
    const auto start = std::chrono::steady_clock::now();
    if (task.metric == Metric::kPerplexity) {
      DSV4_TRY(texts(task, report));
    } else if (!task.items.empty()) {
      DSV4_TRY(answers(task, report));
    }
    report.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return report;
  }

 private:
  Status texts(const Task& task, TaskReport& report) {
    std::vector<std::vector<int32_t>> tokens;
    for (const Item& item : task.items) {
      DSV4_ASSIGN(std::vector<int32_t> ids, tokenizer_.encode(item.prompt));
      report.prompt_tokens += std::ssize(ids);
      tokens.push_back(std::move(ids));
    }
    return score_texts(loaded_, ops_, tokens, report, progress_);
  }

  Result<Turn> turn(const std::string& prompt, int64_t expected_tokens) const {
    Turn t;
    DSV4_ASSIGN(t.prompt, tokenizer_.encode(prompt));
    t.max_tokens = expected_tokens + kSlack;
    return t;
  }

  Status answers(const Task& task, TaskReport& report) {
    const bool tool = task.metric == Metric::kTool;
    // Room for reasoning too: the sets hold none longer than this.
    constexpr int64_t kReasoning = 64, kCallMarkup = 96;
    std::vector<Turn> first, second;
    int64_t longest = 0;
    const auto add = [&](std::vector<Turn>& turns, const std::string& prompt,
                         const std::string& answer, int64_t extra) -> Status {
      DSV4_ASSIGN(const std::vector<int32_t> expected, tokenizer_.encode(answer));
      DSV4_ASSIGN(Turn t, turn(prompt, std::ssize(expected) + extra));
      longest = std::max(longest, std::ssize(t.prompt) + t.max_tokens);
      turns.push_back(std::move(t));
      return {};
    };
    for (const Item& item : task.items) {
      const int64_t extra = item.thinking == chat::ThinkingMode::kThinking ? kReasoning : 0;
      if (tool) {
        DSV4_TRY(add(first, item.prompt, expected_call(item), extra + kCallMarkup));
        DSV4_TRY(add(second, item.answer_prompt, item.expected, extra));
      } else {
        DSV4_TRY(add(first, item.prompt, item.expected, extra));
      }
    }

    const Model& model = *loaded_.model;
    EngineOptions engine_options;
    engine_options.context = longest;
    engine_options.max_sequences = std::min(options_.max_sequences, report.items);
    engine_options.prefill_chunk = options_.prefill_chunk;
    DSV4_ASSIGN(
        const EngineLimits limits,
        resolve_limits(engine_options, model.config, make_cache_spec(model.config, model.plan)));
    DSV4_ASSIGN(const auto engine,
                EngineCore::make(model, limits, *loaded_.backend, ops_, Hash128{}));
    Decoder decoder(*engine, tokenizer_, engine_options.max_sequences);

    const int64_t total = std::ssize(first) + std::ssize(second);
    int64_t before = 0;
    const auto finished = [&](int64_t n) {
      if (progress_) {
        progress_({.stage = report.task, .done = before + n, .total = total, .unit = "replies"});
      }
    };
    DSV4_ASSIGN(const std::vector<std::string> replies,
                decoder.run(std::move(first), report, finished));
    before = std::ssize(replies);
    if (!tool) {
      judge(task, replies, "accuracy", report);
      return {};
    }
    judge_calls(task, replies, report);
    DSV4_ASSIGN(const std::vector<std::string> answers,
                decoder.run(std::move(second), report, finished));
    judge(task, answers, "answer", report);
    return {};
  }

  static void judge(const Task& task, const std::vector<std::string>& replies, const char* figure,
                    TaskReport& report) {
    int64_t hits = 0;
    for (size_t i = 0; i < replies.size(); ++i) {
      const Item& item = task.items[i];
      if (exact_match(item, replies[i])) {
        ++hits;
      } else {
        report.misses.push_back({item.id, item.expected, replies[i]});
      }
    }
    report.figures.push_back({figure, share(hits, report.items), report.items});
  }

  static void judge_calls(const Task& task, const std::vector<std::string>& replies,
                          TaskReport& report) {
    int64_t parsed = 0, right = 0;
    for (size_t i = 0; i < replies.size(); ++i) {
      const Item& item = task.items[i];
      const ToolScore score = score_call(item, replies[i]);
      parsed += score.parsed;
      right += score.arguments;
      if (!score.arguments) report.misses.push_back({item.id, expected_call(item), replies[i]});
    }
    report.figures.push_back({"parsed", share(parsed, report.items), report.items});
    report.figures.push_back({"arguments", share(right, report.items), report.items});
  }

  const LoadedModel& loaded_;
  const OpTable& ops_;
  const Tokenizer& tokenizer_;
  const EvalOptions& options_;
  const ProgressSink& progress_;
};

}  // namespace

Result<Report> evaluate(const LoadedModel& loaded, const OpTable& ops, const Tokenizer& tokenizer,
                        const std::vector<Task>& tasks, const EvalOptions& options,
                        const ProgressSink& progress) {
  Report report;
  report.backend = loaded.backend->describe();
  Evaluation evaluation(loaded, ops, tokenizer, options, progress);
  for (const Task& task : tasks) {
    auto done = evaluation.run(task);
    if (!done.ok()) return done.status().with_context(task.name);
    report.tasks.push_back(std::move(done).value());
  }
  return report;
}

}  // namespace dsv4::eval
