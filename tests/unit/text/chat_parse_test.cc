// Completions: read at once, and read as they come.
#include <gtest/gtest.h>

#include "small_tokenizer.h"
#include "text/chat.h"
#include "text/chat_format.h"
#include "text/stream_parser.h"

namespace dsv4::chat {
namespace {

constexpr auto kChat = ThinkingMode::kChat;
constexpr auto kThinking = ThinkingMode::kThinking;

// '|' stands for the DSML token, '$' for EOS.
std::string completion(std::string_view brief) {
  std::string out;
  for (const char c : brief) {
    if (c == '|') {
      out += kDsml;
    } else if (c == '$') {
      out += kEos;
    } else {
      out += c;
    }
  }
  return out;
}

std::string result(const Result<AssistantMessage>& message) {
  return message.ok() ? py::dumps(to_json(*message)) : "error: " + message.status().message();
}

std::string read(std::string_view brief, ThinkingMode mode) {
  return result(parse(completion(brief), mode));
}

std::string expected(const std::string& content, const std::string& reasoning,
                     const std::string& calls) {
  return "{\"role\": \"assistant\", \"content\": \"" + content + "\", \"reasoning_content\": \"" +
         reasoning + "\", \"tool_calls\": [" + calls + "]}";
}

const char kTwoCalls[] =
    "r</think>c\n\n\n<|tool_calls>\n<|invoke name=\"f\">\n"
    "<|parameter name=\"a\" string=\"true\">x\"\n<b></|parameter>\n"
    "<|parameter name=\"b\" string=\"false\">[1, {}]</|parameter>\n</|invoke>\n"
    "<|invoke name=\"g h\">\n\n</|invoke>\n</|tool_calls>";

TEST(ChatParse, WellFormed) {
  EXPECT_EQ(read("a$", kChat), expected("a", "", ""));
  EXPECT_EQ(read("$", kChat), expected("", "", ""));
  EXPECT_EQ(read("r</think>a$", kThinking), expected("a", "r", ""));
  EXPECT_EQ(read("</think>$", kThinking), expected("", "", ""));
  const std::string calls =
      R"({"type": "function", "function": {"name": "f", "arguments": "{\"a\": \"x\\\"\\n<b>\", \"b\": [1, {}]}"}}, )"
      R"({"type": "function", "function": {"name": "g h", "arguments": "{}"}})";
  // Two line feeds belong to the block, a third one to the content. EOS may be missing behind it.
  EXPECT_EQ(read(kTwoCalls, kThinking), expected("c\\n", "r", calls));
  EXPECT_EQ(read(std::string(kTwoCalls) + "$", kThinking), expected("c\\n", "r", calls));
  // No parameter: one line feed or two.
  EXPECT_EQ(
      read("\n\n<|tool_calls>\n<|invoke name=\"f\">\n</|invoke>\n</|tool_calls>", kChat),
      expected("", "", R"({"type": "function", "function": {"name": "f", "arguments": "{}"}})"));
}

TEST(ChatParse, WhatTheFormatDoesNotProvideFor) {
  const auto call = [](const std::string& inside) {
    return "\n\n<|tool_calls>\n<|invoke name=\"f\">\n" + inside + "</|invoke>\n</|tool_calls>$";
  };
  const std::string a = "<|parameter name=\"a\" string=\"true\">x</|parameter>\n";
  EXPECT_EQ(read(call(a), kChat).rfind("error", 0), std::string::npos);
  for (const std::string& text :
       {std::string(""), std::string("a"), std::string("a$b"), std::string("a$$"),
        std::string("a</think>b$"), std::string("<think>$"), std::string("|$"),
        std::string(kBos) + "$", call(a) + "x", call(a + a),
        call("<|parameter name=\"a\"  string=\"true\">x</|parameter>\n"),
        call("<|parameter name=\"a\" string=\"yes\">x</|parameter>\n"),
        call("<|parameter name=\"a\" string=\"true\">x</|parameter>"), call("\n\n"), call("x\n"),
        std::string("\n\n<|tool_calls"), std::string("\n\n<|tool_calls>\n</|tool_calls"),
        std::string("\n\n<|tool_calls>\n\n</|tool_calls>$")}) {
    EXPECT_EQ(read(text, kChat).rfind("error: completion: ", 0), 0u) << text;
  }
  for (const char* text :
       {"r$", "r\n\n<|tool_calls>\n</|tool_calls></think>$", "<think>r</think>$"}) {
    EXPECT_EQ(read(text, kThinking).rfind("error: completion: ", 0), 0u) << text;
  }
  EXPECT_EQ(read(call("x\n"), kChat).find('\n'), std::string::npos);
}

// What a reader of the events puts together.
AssistantMessage assemble(const std::vector<StreamEvent>& events) {
  AssistantMessage message;
  for (const StreamEvent& event : events) {
    switch (event.kind) {
      case StreamEvent::Kind::kReasoning:
        message.reasoning_content += event.text;
        break;
      case StreamEvent::Kind::kContent:
        message.content += event.text;
        break;
      case StreamEvent::Kind::kToolCallBegin:
        EXPECT_EQ(event.index, message.tool_calls.size());
        message.tool_calls.push_back({event.text, ""});
        break;
      case StreamEvent::Kind::kToolCallArguments:
        message.tool_calls.at(event.index).arguments += event.text;
        break;
    }
  }
  return message;
}

void expect_streams_like_parse(const std::string& text, ThinkingMode mode) {
  const auto whole = parse(text, mode);
  for (size_t split = 0; split <= text.size(); ++split) {
    StreamParser parser(mode);
    std::vector<StreamEvent> events;
    parser.feed(std::string_view(text).substr(0, split), events);
    parser.feed(std::string_view(text).substr(split), events);
    const auto streamed = parser.finish(events);
    ASSERT_EQ(result(streamed), result(whole));
    const AssistantMessage assembled = assemble(events);
    ASSERT_EQ(result(assembled), result(parser.so_far()));
    ASSERT_EQ(assembled.content.find(kDsml), std::string::npos);
    ASSERT_EQ(assembled.reasoning_content.find(kDsml), std::string::npos);
    if (whole.ok()) {
      ASSERT_EQ(result(assembled), result(whole)) << text << " split at " << split;
    }
  }
  StreamParser parser(mode);
  std::vector<StreamEvent> events;
  for (const char c : text) parser.feed(std::string_view(&c, 1), events);
  ASSERT_EQ(result(parser.finish(events)), result(whole));
  if (whole.ok()) {
    ASSERT_EQ(result(assemble(events)), result(whole)) << text;
  }
}

TEST(StreamParser, AnySplitGivesTheSameMessage) {
  for (const char* brief : {"a$", "", "a\n\n", "a <b> </ <\n\n<$", "a\n\n\n\n$", "a|b$",
                            "x</think>y$", "a$b", "c <|invoke name=\"f\">$"}) {
    expect_streams_like_parse(completion(brief), kChat);
  }
  for (const std::string& brief :
       {std::string(kTwoCalls), std::string(kTwoCalls) + "$", std::string("r</thin</think>\n\n<t$"),
        std::string("r"), std::string("r$"), std::string("r\n\n<|tool_calls>\n</think>x$")}) {
    expect_streams_like_parse(completion(brief), kThinking);
  }
}

TEST(StreamParser, EmitsAsSoonAsItIsDecided) {
  StreamParser parser(kThinking);
  std::vector<StreamEvent> events;
  parser.feed("so <", events);
  EXPECT_EQ(parser.so_far().reasoning_content, "so ");
  parser.feed("b", events);
  EXPECT_EQ(parser.so_far().reasoning_content, "so <b");
  parser.feed("</think>yes\n", events);
  EXPECT_EQ(parser.so_far().content, "yes");
  parser.feed("\n", events);
  parser.feed(completion("<|tool_calls>\n<|invoke name=\"f\">\n<|parameter"), events);
  ASSERT_EQ(parser.so_far().tool_calls.size(), 1u);
  EXPECT_EQ(parser.so_far().tool_calls[0].name, "f");
  parser.feed(completion(" name=\"a\" string=\"false\">1</|parameter>"), events);
  EXPECT_EQ(parser.so_far().tool_calls[0].arguments, "{\"a\": 1");
  // Cut off here: an error, with what could be read.
  EXPECT_FALSE(parser.finish(events).ok());
  EXPECT_EQ(parser.so_far().content, "yes");
}

TEST(StreamParser, TextCutOffIsNotLost) {
  StreamParser parser(kChat);
  std::vector<StreamEvent> events;
  parser.feed("a <", events);
  EXPECT_FALSE(parser.finish(events).ok());
  EXPECT_EQ(parser.so_far().content, "a <");
}

TEST(StreamParser, MarkersOutOfPlaceAreNotText) {
  StreamParser parser(kChat);
  std::vector<StreamEvent> events;
  parser.feed("a </think> b <think>c", events);
  EXPECT_FALSE(parser.finish(events).ok());
  EXPECT_EQ(assemble(events).content, "a  b c");
}

TEST(SharedEncoding, ParseCases) {
  if (!has_shared("encoding/parse_cases.json")) {
    GTEST_SKIP() << "../shared/encoding is absent: its 250 completions are not checked";
  }
  const auto cases = py::loads(read_file(shared_file("encoding/parse_cases.json")));
  ASSERT_TRUE(cases.ok());
  ASSERT_EQ(cases->if_array()->size(), 250u);
  size_t number = 0;
  for (const py::Value& c : *cases->if_array()) {
    const std::string& text = *c.find("text")->if_string();
    const ThinkingMode mode = *parse_thinking_mode(*c.find("thinking_mode")->if_string());
    const auto message = parse(text, mode);
    if (c.find("raises")) {
      EXPECT_FALSE(message.ok()) << text;
    } else {
      ASSERT_TRUE(message.ok()) << message.status().message();
      ASSERT_EQ(py::dumps(to_json(*message)), py::dumps(*c.find("expected"))) << text;
    }
    // Every split position of every completion would take long.
    if (number++ % 10 == 0) expect_streams_like_parse(text, mode);
  }
}

}  // namespace
}  // namespace dsv4::chat
