// Answers: the generations of one exchange, of which there may be several (n, several prompts).
#pragma once

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
  virtual ~AnswerWriter() = default;
  virtual void on_delta(size_t index, const Delta& delta) = 0;
  virtual void on_outcome(size_t index, const Outcome& outcome) = 0;
  // Behind the last outcome.
  virtual void on_complete() = 0;
  // In place of what would have followed.
  virtual void on_error(const ApiError& error) = 0;
};

// Starts a generation for each spec. When the client goes away all of them end. An error of the
// first start is returned and nothing is called; `writer` has not begun to answer then.
std::optional<ApiError> start_answers(App& app, const std::shared_ptr<Exchange>& exchange,
                                      std::vector<GenerationSpec> specs, std::shared_ptr<AnswerWriter> writer);

}  // namespace dsv4::server
