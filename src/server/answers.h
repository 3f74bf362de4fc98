// Answers: the generations of one exchange, of which there may be several (n, several prompts).
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "server/api_error.h"
#include "server/generation.h"

namespace dsv4::server {

// What an endpoint does with what its generations say. It lives as long as they do.
class AnswerWriter {
 public:
  AnswerWriter(std::shared_ptr<Exchange> exchange, bool stream)
      : exchange_(std::move(exchange)), stream_(stream) {}
  virtual ~AnswerWriter() = default;

  // A long prompt is being read: a comment in the stream now and then tells proxies that the
  // connection lives.
  void on_prompt(int64_t done, int64_t total);
  virtual void on_delta(size_t index, const Delta& delta) = 0;
  virtual void on_outcome(size_t index, const Outcome& outcome) = 0;
  // Behind the last outcome.
  virtual void on_complete() = 0;
  // In place of what would have followed.
  virtual void on_error(const ApiError& error) = 0;

 protected:
  const std::shared_ptr<Exchange> exchange_;
  const bool stream_;

 private:
  std::chrono::steady_clock::time_point last_comment_ = std::chrono::steady_clock::now();
};

// Starts a generation for each spec. When the client goes away all of them end. An error of the
// first start is returned and nothing is called; `writer` has not begun to answer then.
std::optional<ApiError> start_answers(App& app, const std::shared_ptr<Exchange>& exchange,
                                      std::vector<GenerationSpec> specs, std::shared_ptr<AnswerWriter> writer);

}  // namespace dsv4::server
