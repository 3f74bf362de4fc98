#include "text/tool_block.h"

#include <algorithm>

#include "base/str.h"
#include "text/chat_format.h"
#include "text/py_json.h"

namespace dsv4::chat {
namespace {

struct Marker {
  size_t at;
  std::string_view text;  // empty: none was found
};

Marker find_first(std::string_view text, size_t from, std::string_view a, std::string_view b) {
  const size_t at_a = text.find(a, from);
  const size_t at_b = text.substr(0, at_a).find(b, from);
  if (at_b != text.npos) return {at_b, b};
  if (at_a != text.npos) return {at_a, a};
  return {text.npos, {}};
}

// The start of `text` for a message, on one line.
std::string excerpt(std::string_view text) {
  constexpr size_t kMost = 40;
  std::string out;
  // Not in the middle of a character.
  size_t size = std::min(text.size(), kMost);
  while (size > 0 && size < text.size() &&
         (static_cast<unsigned char>(text[size]) & 0xC0) == 0x80) {
    --size;
  }
  py::dump_string_to(out, text.substr(0, size));
  return size < text.size() ? out + "..." : out;
}

Status wrong(std::string_view expected, std::string_view found) {
  return Status(Code::kInvalidArgument,
                cat("tool calls: expected ", expected, ", found ", excerpt(found)));
}

bool take_suffix(std::string_view& text, std::string_view suffix) {
  if (!text.ends_with(suffix)) return false;
  text.remove_suffix(suffix.size());
  return true;
}

bool take_prefix(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

}  // namespace

Status ToolBlockReader::advance(std::string_view text) {
  for (;;) {
    DSV4_ASSIGN(const bool moved, step(text));
    if (!moved) return {};
  }
}

Result<bool> ToolBlockReader::step(std::string_view text) {
  if (state_ == State::kComplete) return false;
  const bool in_parameter = state_ == State::kParameter;
  const bool before_invoke = state_ == State::kInvoke;
  const std::string_view a = before_invoke  ? kInvokeBegin
                             : in_parameter ? kParameterEnd.substr(1)
                                            : kParameterBegin;
  const std::string_view b = before_invoke ? kToolCallsEnd : in_parameter ? a : kInvokeEnd;
  const Marker marker = find_first(text, std::max(at_, searched_), a, b);
  if (marker.text.empty()) {
    const size_t longest = std::max(a.size(), b.size());
    searched_ = text.size() < longest ? 0 : text.size() - longest + 1;
    return false;
  }
  std::string_view between = text.substr(at_, marker.at - at_);
  at_ = marker.at + marker.text.size();

  if (state_ == State::kInvoke) {
    if (between != ">\n")
      return wrong("\">\\n\" before an invoke or the end of the block", between);
    if (marker.text == kInvokeBegin) {
      state_ = State::kHeader;
    } else {
      state_ = State::kComplete;
    }
    return true;
  }
  if (state_ == State::kParameter) {
    DSV4_TRY(parameter(between));
    state_ = State::kBetween;
    return true;
  }
  if (state_ == State::kHeader) {
    std::string_view name = between;
    while (!name.empty() && std::string_view(" \t\n\r\f\v").find(name.front()) != name.npos) {
      name.remove_prefix(1);
    }
    if (!take_prefix(name, "name=\"") ||
        !(take_suffix(name, "\">\n\n") || take_suffix(name, "\">\n"))) {
      return wrong("name=\"TOOL\"> and a line feed behind invoke", between);
    }
    calls_.push_back({std::string(name), "{"});
    names_.clear();
  } else if (between != ">\n") {
    return wrong("\">\\n\" behind a parameter", between);
  }
  if (marker.text == kParameterBegin) {
    state_ = State::kParameter;
  } else {
    calls_.back().arguments += '}';
    state_ = State::kInvoke;
  }
  return true;
}

Status ToolBlockReader::parameter(std::string_view text) {
  const std::string_view all = text;
  if (!take_prefix(text, " name=\"")) return wrong(" name=\"NAME\" behind parameter", all);
  const Marker flag = find_first(text, 0, "\" string=\"true\">", "\" string=\"false\">");
  if (flag.text.empty()) return wrong("\" string=\"true\"> or \" string=\"false\">", all);
  // A line feed between '<' and '/' is let through, as the original does.
  if (!take_suffix(text, "<") && !take_suffix(text, "<\n")) {
    return wrong("</｜DSML｜parameter> to close the parameter", all);
  }
  const std::string_view name = text.substr(0, flag.at);
  const size_t value_at = flag.at + flag.text.size();
  if (value_at > text.size()) return wrong("a value before the end of the parameter", all);
  const std::string_view value = text.substr(value_at);

  if (std::find(names_.begin(), names_.end(), name) != names_.end()) {
    return wrong("each parameter once", name);
  }
  std::string& out = calls_.back().arguments;
  if (!names_.empty()) out += ", ";
  names_.emplace_back(name);
  py::dump_string_to(out, name);
  out += ": ";
  if (flag.text == "\" string=\"true\">") {
    py::dump_string_to(out, value);
  } else {
    out += value;
  }
  return {};
}

}  // namespace dsv4::chat
