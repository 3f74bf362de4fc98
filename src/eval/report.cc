#include <charconv>
#include <cmath>
#include <cstdio>

#include "base/str.h"
#include "eval/evaluate.h"

namespace dsv4::eval {

const Figure* find_figure(const Report& report, std::string_view name) {
  for (const TaskReport& task : report.tasks) {
    for (const Figure& figure : task.figures) {
      if (cat(task.task, ".", figure.name) == name) return &figure;
    }
  }
  return nullptr;
}

Result<Requirement> parse_requirement(std::string_view text) {
  Requirement r;
  const size_t at = text.find_first_of("<>");
  if (at != text.npos && at > 0 && at + 2 < text.size() && text[at + 1] == '=') {
    r.figure = text.substr(0, at);
    r.at_least = text[at] == '>';
    const std::string_view number = text.substr(at + 2);
    const char* const end = number.data() + number.size();
    const auto [rest, error] = std::from_chars(number.data(), end, r.limit);
    if (error == std::errc() && rest == end && std::isfinite(r.limit)) return r;
  }
  return Status(Code::kInvalidArgument,
                cat("\"", text,
                    "\": expected TASK.FIGURE>=NUMBER or TASK.FIGURE<=NUMBER, such as "
                    "recall_1k.accuracy>=0.98"));
}

std::vector<std::string> unmet(const Report& report, const std::vector<Requirement>& requirements) {
  std::vector<std::string> lines;
  for (const Requirement& r : requirements) {
    const Figure* figure = find_figure(report, r.figure);
    const bool met = figure && (r.at_least ? figure->value >= r.limit : figure->value <= r.limit);
    if (met) continue;
    lines.push_back(cat(r.figure, ": expected at ", r.at_least ? "least " : "most ", r.limit,
                        ", found ", figure ? cat(figure->value) : std::string("no such figure")));
  }
  return lines;
}

std::string to_text(const Report& report) {
  std::string out;
  char line[160];
  std::snprintf(line, sizeof line, "%-12s %6s  %-16s %9s  %9s %8s %8s\n", "task", "items", "figure",
                "value", "prompt", "reply", "seconds");
  out += line;
  for (const TaskReport& t : report.tasks) {
    bool first = true;
    for (const Figure& f : t.figures) {
      char value[32];
      std::snprintf(value, sizeof value, f.name == "perplexity" ? "%.4f" : "%.1f %%",
                    f.name == "perplexity" ? f.value : 100 * f.value);
      if (first) {
        std::snprintf(line, sizeof line, "%-12s %6lld  %-16s %9s  %9lld %8lld %8.1f\n",
                      t.task.c_str(), static_cast<long long>(t.items), f.name.c_str(), value,
                      static_cast<long long>(t.prompt_tokens),
                      static_cast<long long>(t.completion_tokens), t.seconds);
      } else {
        std::snprintf(line, sizeof line, "%-12s %6s  %-16s %9s\n", "", "", f.name.c_str(), value);
      }
      out += line;
      first = false;
    }
  }
  return out;
}

}  // namespace dsv4::eval
