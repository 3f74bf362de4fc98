// Lines from a person (editing, history) or from a pipe.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace dsv4::apps {

class LineEditor {
 public:
  // `prompt` is shown on a terminal only.
  explicit LineEditor(std::string prompt);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  // Without its line feed; nullopt at the end of input (Ctrl-D). Ctrl-C gives an empty line.
  std::optional<std::string> next();

 private:
  struct Terminal;
  std::unique_ptr<Terminal> terminal_;  // none where standard input or output is not one
};

}  // namespace dsv4::apps
