#include "text/stream_parser.h"

#include <algorithm>
#include <initializer_list>

#include "text/chat_format.h"

namespace dsv4::chat {
namespace {

// Where the longest end of `text` begins that is the start of one of the markers.
size_t held_from(std::string_view text, std::initializer_list<std::string_view> markers) {
  size_t from = text.size();
  for (const std::string_view marker : markers) {
    const size_t most = std::min(text.size(), marker.size() - 1);
    for (size_t size = most; size > text.size() - from; --size) {
      if (text.ends_with(marker.substr(0, size))) {
        from = text.size() - size;
        break;
      }
    }
  }
  return from;
}

// A DSML token outside of a tool block, with the brackets of its tag.
constexpr std::string_view kDsmlOpen = "<｜DSML｜";
constexpr std::string_view kDsmlClose = "</｜DSML｜";

}  // namespace

void StreamParser::feed(std::string_view text, std::vector<StreamEvent>& events) {
  text_ += text;
  plain(events, false);
  tools(events);
}

Result<AssistantMessage> StreamParser::finish(std::vector<StreamEvent>& events) {
  plain(events, true);
  return parse(text_, mode_);
}

void StreamParser::emit(std::string_view text, std::vector<StreamEvent>& events) {
  if (text.empty()) return;
  const bool reasoning = state_ == State::kReasoning;
  (reasoning ? so_far_.reasoning_content : so_far_.content) += text;
  events.push_back(
      {reasoning ? StreamEvent::Kind::kReasoning : StreamEvent::Kind::kContent, std::string(text)});
}

void StreamParser::plain(std::vector<StreamEvent>& events, bool final) {
  while (state_ == State::kReasoning || state_ == State::kContent) {
    const bool reasoning = state_ == State::kReasoning;
    const std::initializer_list<std::string_view> markers = {
        kToolCallsBegin, kEos, kDsmlOpen, kDsmlClose, kDsml, kThinkEnd, kThinkBegin, kBos};
    const std::string_view rest = std::string_view(text_).substr(at_);
    size_t first = rest.npos;
    std::string_view found;
    for (const std::string_view marker : markers) {
      const size_t at = rest.find(marker);
      if (at < first) {
        first = at;
        found = marker;
      }
    }
    // A marker that is there may be the inside of a longer one that is not complete yet.
    const size_t held = final ? rest.size() : held_from(rest, markers);
    if (held <= first || found.empty()) {
      emit(rest.substr(0, held), events);
      at_ += held;
      return;
    }
    emit(rest.substr(0, first), events);
    at_ += first + found.size();
    if (found == kThinkBegin || found == kBos) {
      // Out of place; what follows still is text.
    } else if (found == kThinkEnd) {
      state_ = State::kContent;
    } else if (found == kToolCallsBegin && !reasoning) {
      state_ = State::kTools;
      block_ = at_;
    } else {
      state_ = State::kEnd;
    }
  }
}

void StreamParser::tools(std::vector<StreamEvent>& events) {
  if (state_ != State::kTools) return;
  const bool well_formed = reader_.advance(std::string_view(text_).substr(block_)).ok();
  const std::vector<ToolCall>& calls = reader_.calls();
  for (size_t i = so_far_.tool_calls.empty() ? 0 : so_far_.tool_calls.size() - 1; i < calls.size();
       ++i) {
    if (i == so_far_.tool_calls.size()) {
      so_far_.tool_calls.push_back({calls[i].name, {}});
      events.push_back({StreamEvent::Kind::kToolCallBegin, calls[i].name, i});
    }
    std::string& known = so_far_.tool_calls[i].arguments;
    if (known.size() == calls[i].arguments.size()) continue;
    events.push_back(
        {StreamEvent::Kind::kToolCallArguments, calls[i].arguments.substr(known.size()), i});
    known = calls[i].arguments;
  }
  if (!well_formed || reader_.complete()) state_ = State::kEnd;
}

}  // namespace dsv4::chat
