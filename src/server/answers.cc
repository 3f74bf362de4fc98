#include "server/answers.h"

#include <algorithm>

#include "base/str.h"

namespace dsv4::server {
namespace {

struct Answers {
  std::vector<std::shared_ptr<Generation>> generations;
  std::shared_ptr<AnswerWriter> writer;
  size_t left = 0;
  bool failed = false;

  void abandon() {
    for (const auto& generation : generations) generation->abandon();
    generations.clear();
  }
};

}  // namespace

void AnswerWriter::on_prompt(int64_t done, int64_t total) {
  const auto now = std::chrono::steady_clock::now();
  if (!stream_ || now - last_comment_ < std::chrono::seconds(3)) return;
  last_comment_ = now;
  exchange_->write(cat(": ", done, " of ", total, " prompt tokens\n\n"));
}

std::optional<ApiError> start_answers(App& app, const std::shared_ptr<Exchange>& exchange,
                     std::vector<GenerationSpec> specs, std::shared_ptr<AnswerWriter> writer) {
  const auto answers = std::make_shared<Answers>();
  answers->writer = std::move(writer);
  answers->left = specs.size();
  for (size_t i = 0; i < specs.size(); ++i) {
    auto started = Generation::start(
        app, exchange, std::move(specs[i]),
        [answers, i](const Delta& delta) {
          if (answers->failed) return;
          if (delta.prompt_done > 0) answers->writer->on_prompt(delta.prompt_done, delta.prompt_total);
          if (delta.has_answer()) answers->writer->on_delta(i, delta);
        },
        [answers, i, &app](const Result<Outcome>& outcome) {
          if (answers->failed) return;
          if (!outcome.ok()) {
            answers->failed = true;
            answers->writer->on_error(api_error(outcome.status()));
            return answers->abandon();
          }
          app.metrics.usage(outcome->prompt_tokens, outcome->cached_tokens,
                            outcome->completion_tokens);
          answers->writer->on_outcome(i, *outcome);
          if (--answers->left == 0) answers->writer->on_complete();
        });
    if (!started.ok()) {
      answers->failed = true;
      answers->abandon();
      ApiError error = api_error(started.status());
      if (error.status == 429) {
        error.retry_after = static_cast<int>(std::clamp(app.engine.stats().retry_after_seconds, 1.0, 600.0));
      }
      return error;
    }
    answers->generations.push_back(std::move(started).value());
  }
  exchange->set_on_close([answers] {
    answers->failed = true;
    answers->abandon();
  });
  return std::nullopt;
}

}  // namespace dsv4::server
