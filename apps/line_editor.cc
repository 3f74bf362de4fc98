#include "line_editor.h"

#include <histedit.h>
#include <langinfo.h>
#include <unistd.h>

#include <clocale>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <utility>

namespace dsv4::apps {

struct LineEditor::Terminal {
  explicit Terminal(std::string text) : prompt(std::move(text)) {
    // Characters are UTF-8 here whatever the environment forgot to say.
    std::setlocale(LC_CTYPE, "");
    if (std::strcmp(nl_langinfo(CODESET), "UTF-8") != 0) std::setlocale(LC_CTYPE, "C.UTF-8");
    history = history_init();
    editor = el_init("dsv4", stdin, stdout, stderr);
    HistEvent event;
    ::history(history, &event, H_SETSIZE, 1000);
    ::history(history, &event, H_SETUNIQUE, 1);
    el_set(editor, EL_CLIENTDATA, this);
    el_set(editor, EL_PROMPT, &Terminal::show_prompt);
    el_set(editor, EL_EDITOR, "emacs");
    el_set(editor, EL_HIST, ::history, history);
    // Ctrl-C as a key: it drops the line that is being typed.
    el_set(editor, EL_SETTY, "-d", "-isig", nullptr);
    el_set(editor, EL_ADDFN, "drop-line", "Start the line anew", &Terminal::drop_line);
    el_set(editor, EL_BIND, "^C", "drop-line", nullptr);
    el_set(editor, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  }
  ~Terminal() {
    el_end(editor);
    history_end(history);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  static Terminal& of(EditLine* e) {
    void* self = nullptr;
    el_get(e, EL_CLIENTDATA, &self);
    return *static_cast<Terminal*>(self);
  }
  static char* show_prompt(EditLine* e) { return of(e).prompt.data(); }
  static unsigned char drop_line(EditLine* e, int) {
    of(e).dropped = true;
    return CC_NEWLINE;
  }

  std::optional<std::string> next() {
    dropped = false;
    int count = 0;
    const char* const line = el_gets(editor, &count);
    if (!line || count <= 0) {
      std::fputc('\n', stdout);
      return std::nullopt;
    }
    if (dropped) {
      std::fputc('\n', stdout);
      return std::string();
    }
    std::string text(line, static_cast<size_t>(count));
    while (!text.empty() && text.back() == '\n') text.pop_back();
    HistEvent event;
    if (!text.empty()) ::history(history, &event, H_ENTER, text.c_str());
    return text;
  }

  std::string prompt;
  ::History* history = nullptr;
  EditLine* editor = nullptr;
  bool dropped = false;
};

LineEditor::LineEditor(std::string prompt) {
  if (isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)) {
    terminal_ = std::make_unique<Terminal>(std::move(prompt));
  }
}

LineEditor::~LineEditor() = default;

std::optional<std::string> LineEditor::next() {
  if (terminal_) return terminal_->next();
  std::string line;
  if (!std::getline(std::cin, line)) return std::nullopt;
  return line;
}

}  // namespace dsv4::apps
