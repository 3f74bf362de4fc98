#include <gtest/gtest.h>

#include "sha256.h"
#include "small_tokenizer.h"
#include "text/chat.h"
#include "text/chat_format.h"

namespace dsv4::chat {
namespace {

py::Value::Array messages(std::string_view json) {
  auto value = py::loads(json);
  EXPECT_TRUE(value.ok()) << value.status().message();
  return *value->if_array();
}

// The prompt, or "error: ...".
std::string prompt(std::string_view json, const EncodeOptions& options = {}) {
  const auto text = encode(messages(json), options);
  return text.ok() ? *text : "error: " + text.status().message();
}

// Short names for the tokens, so that expectations can be read.
std::string shorten(std::string text) {
  const std::pair<std::string_view, std::string_view> names[] = {
      {kBos, "[BOS]"},     {kEos, "[EOS]"},          {kUser, "[U]"},
      {kAssistant, "[A]"}, {kLatestReminder, "[R]"}, {kDsml, "|"}};
  for (const auto& [token, name] : names) {
    for (size_t at = 0; (at = text.find(token, at)) != text.npos;)
      text.replace(at, token.size(), name);
  }
  return text;
}

const EncodeOptions kPlain = {.thinking_mode = ThinkingMode::kChat};

TEST(ChatFormat, FixedTextsByHash) {
  EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(kEffortMax.size(), 476u);
  EXPECT_EQ(sha256(kEffortMax), "f7a24f3b3050d4a83781e9b755b316aae2ec1d9dc87562541d90bcb04d7350f7");
  EXPECT_EQ(kToolsBeforeSchemas.size(), 890u);
  EXPECT_EQ(sha256(kToolsBeforeSchemas),
            "c7c9042638154a237b5d1bd48be772374a35a4d24c5cacfd1ffbd92703da329c");
  EXPECT_EQ(kToolsAfterSchemas.size(), 99u);
  EXPECT_EQ(sha256(kToolsAfterSchemas),
            "690702850fe256512cb1ee67c4e436ecb3e735c71ebee77ca45ff357a75fb5a7");
  EXPECT_EQ(kResponseFormat.size(), 80u);
  EXPECT_EQ(sha256(kResponseFormat),
            "5200f58413f49f3957c43beddbc97bead023232cb5934fad0c1997c30c139112");
}

TEST(ChatEncode, Turns) {
  const char* talk = R"([{"role":"system","content":"S"},{"role":"user","content":"a"},
    {"role":"assistant","content":"b","reasoning_content":"r"},{"role":"user","content":"c"}])";
  EXPECT_EQ(shorten(prompt(talk, kPlain)), "[BOS]S[U]a[A]</think>b[EOS][U]c[A]</think>");
  EXPECT_EQ(shorten(prompt(talk)), "[BOS]S[U]a[A]</think>b[EOS][U]c[A]<think>");
  EXPECT_EQ(shorten(prompt(talk, {.drop_thinking = false})),
            "[BOS]S[U]a[A]<think>r</think>b[EOS][U]c[A]<think>");
  EXPECT_EQ(shorten(prompt("[]")), "[BOS]");
  EXPECT_EQ(shorten(prompt(R"([{"role":"system"}])")), "[BOS]");
  EXPECT_EQ(prompt("[]", {.add_default_bos_token = false}), "");
}

TEST(ChatEncode, UserAndToolMessagesFuse) {
  EXPECT_EQ(shorten(prompt(R"([{"role":"user","content":"a"},{"role":"user","content":"b"},
                               {"role":"tool","content":"t"}])",
                           kPlain)),
            "[BOS][U]a\n\nb\n\n<tool_result>t</tool_result>[A]</think>");
  // A task closes its message for texts, not for tool results.
  EXPECT_EQ(shorten(prompt(R"([{"role":"user","content":"a","task":"query"},
                               {"role":"tool","content":"t"},{"role":"user","content":"b"}])",
                           kPlain)),
            "[BOS][U]a\n\n<tool_result>t</tool_result>[U]b[A]</think>");
}

TEST(ChatEncode, ToolResultsFollowTheCalls) {
  EXPECT_EQ(shorten(prompt(R"([{"role":"assistant","tool_calls":[
      {"id":"x","function":{"name":"f","arguments":"{}"}},
      {"function":{"id":"y","name":"g","arguments":"{\"k\": [1.10], \"s\": \"v\"}"}}]},
      {"role":"tool","tool_call_id":"y","content":"Y"},{"role":"user","content":"u"},
      {"role":"tool","tool_call_id":"x","content":"X"}])",
                           kPlain)),
            "[BOS]\n\n<|tool_calls>\n<|invoke name=\"f\">\n\n</|invoke>\n<|invoke name=\"g\">\n"
            "<|parameter name=\"k\" string=\"false\">[1.1]</|parameter>\n"
            "<|parameter name=\"s\" string=\"true\">v</|parameter>\n</|invoke>\n</|tool_calls>[EOS]"
            "[U]<tool_result>X</tool_result>\n\nu\n\n<tool_result>Y</tool_result>[A]</think>");
}

TEST(ChatEncode, ToolContent) {
  const auto with = [](const std::string& content) {
    return shorten(prompt("[{\"role\":\"tool\"" + content + "}]", kPlain));
  };
  const auto result = [](const std::string& text) {
    return "[BOS][U]<tool_result>" + text + "</tool_result>[A]</think>";
  };
  EXPECT_EQ(with(""), result(""));
  EXPECT_EQ(with(",\"content\":null"), result("None"));
  EXPECT_EQ(with(R"(,"content":[{"type":"text","text":"a"},{"type":"image_url"}])"),
            result("a\n\n[Unsupported image_url]"));
}

TEST(ChatEncode, ArgumentsThatAreNotJson) {
  const auto with = [](const std::string& arguments) {
    std::string text = shorten(prompt(
        "[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":" +
            arguments + "}}]}]",
        kPlain));
    const size_t begin = text.find("<|parameter"), end = text.find("</|parameter>");
    return end == text.npos ? text : text.substr(begin + 11, end - begin - 11);
  };
  EXPECT_EQ(with("\"nope\""), " name=\"arguments\" string=\"true\">nope");
  EXPECT_EQ(with("\"\""), " name=\"arguments\" string=\"true\">");
  EXPECT_EQ(with("{\"a\":1}"), " name=\"arguments\" string=\"false\">{\"a\": 1}");
  EXPECT_EQ(with("\"[1]\"").rfind("error: messages[0].tool_calls[0].function.arguments", 0), 0u);
  EXPECT_EQ(with(R"("{\"a\": \"\\ud800\"}")").rfind("error: messages[0].tool_calls[0]", 0), 0u);
}

TEST(ChatEncode, TasksAndReminders) {
  EXPECT_EQ(shorten(prompt(R"([{"role":"user","content":"a","task":"action"}])")),
            "[BOS][U]a[A]<think><\uFF5Caction\uFF5C>");
  EXPECT_EQ(shorten(prompt(R"([{"role":"user","content":"a"},
      {"role":"assistant","content":"b","task":"title"},{"role":"assistant","content":"T"}])",
                           kPlain)),
            "[BOS][U]a[A]</think>b[EOS]<\uFF5Ctitle\uFF5C>T[EOS]");
  EXPECT_EQ(
      shorten(prompt(R"([{"role":"user","content":"a"},{"role":"latest_reminder","content":"r"}])",
                     kPlain)),
      "[BOS][U]a[A]</think>[R]r");
  // A task that nothing follows up on is not looked at.
  EXPECT_EQ(shorten(prompt(
                R"([{"role":"user","content":"a","task":"bogus"},{"role":"system","content":"s"}])",
                kPlain)),
            "[BOS][U]as");
}

TEST(ChatEncode, EffortAndTools) {
  EncodeOptions max{.reasoning_effort = "max"};
  EXPECT_EQ(prompt(R"([{"role":"system","content":"S"}])", max),
            std::string(kBos) + std::string(kEffortMax) + "S");
  max.thinking_mode = ThinkingMode::kChat;
  EXPECT_EQ(shorten(prompt(R"([{"role":"system","content":"S"}])", max)), "[BOS]S");

  const auto tools = py::loads(R"([{"function":{"b":1,"a":"\u00e9"}},{"function":{}}])");
  const auto text =
      encode(attach_tools(messages(R"([{"role":"user","content":"q"}])"), *tools), kPlain);
  ASSERT_TRUE(text.ok()) << text.status().message();
  EXPECT_EQ(*text, std::string(kBos) + "\n\n" + std::string(kToolsBeforeSchemas) +
                       "{\"b\": 1, \"a\": \"\u00e9\"}\n{}" + std::string(kToolsAfterSchemas) +
                       std::string(kUser) + "q" + std::string(kAssistant) + "</think>");
}

TEST(ChatEncode, ContextDecidesAndIsNotPrinted) {
  const auto context = messages(R"([{"role":"user","content":"a"}])");
  EncodeOptions options{.reasoning_effort = "max", .context = &context};
  // Not fused with the context's user message, no BOS, no effort text.
  EXPECT_EQ(shorten(prompt(R"([{"role":"user","content":"b"}])", options)), "[U]b[A]<think>");
  EXPECT_EQ(
      shorten(prompt(R"([{"role":"assistant","content":"b","reasoning_content":"r"}])", options)),
      "r</think>b[EOS]");
  const auto with_tools =
      messages(R"([{"role":"system","tools":[{"function":{}}]},{"role":"user"}])");
  options.context = &with_tools;
  // Tools in the context keep the reasoning of earlier turns.
  EXPECT_EQ(
      shorten(prompt(R"([{"role":"assistant","reasoning_content":"r"},{"role":"user"}])", options)),
      "r</think>[EOS][U][A]<think>");
}

TEST(ChatEncode, ErrorsNameTheMessage) {
  const std::pair<const char*, const char*> cases[] = {
      {R"([1])", "messages[0].role"},
      {R"([{"content":"a"}])", "messages[0].role"},
      {R"([{"role":"user"},{"role":"robot"}])", "messages[1].role"},
      {R"([{"role":"direct_search_results"}])", "messages[0].role"},
      {R"([{"role":"user","content":null}])", "messages[0].content"},
      {R"([{"role":"user","content":["a"]}])", "messages[0].content"},
      {R"([{"role":"developer","content":""}])", "messages[0].content"},
      {R"([{"role":"user","task":"bogus"}])", "messages[0].task"},
      {R"([{"role":"system","tools":[{}]}])", "messages[0].tools[0].function"},
      {R"([{"role":"system","content":{"a":1}}])", "messages[0].content"},
      {R"([{"role":"assistant","tool_calls":[{"function":{"name":"f"}}]}])",
       "messages[0].tool_calls[0].function.arguments"},
  };
  for (const auto& [json, mentions] : cases) {
    const std::string out = prompt(json);
    EXPECT_EQ(out.rfind("error: ", 0), 0u) << json << " " << out;
    EXPECT_NE(out.find(mentions), std::string::npos) << out;
  }
  EXPECT_EQ(prompt("[]", {.reasoning_effort = "low"}).rfind("error: reasoning_effort", 0), 0u);
  EXPECT_FALSE(parse_thinking_mode("deep").ok());
}

TEST(SharedEncoding, OfficialConversations) {
  if (!has_shared("encoding/official_1.input.json")) {
    GTEST_SKIP() << "../shared/encoding is absent: the official conversations are not checked";
  }
  for (int i = 1; i <= 4; ++i) {
    const std::string stem = shared_file("encoding/official_" + std::to_string(i));
    auto input = py::loads(read_file(stem + ".input.json"));
    ASSERT_TRUE(input.ok());
    py::Value::Array list;
    if (input->if_array()) {
      list = *input->if_array();
    } else {
      list = attach_tools(*input->find("messages")->if_array(), *input->find("tools"));
    }
    EncodeOptions options;
    options.thinking_mode = i == 4 ? ThinkingMode::kChat : ThinkingMode::kThinking;
    const auto text = encode(list, options);
    ASSERT_TRUE(text.ok()) << text.status().message();
    EXPECT_EQ(*text, read_file(stem + ".output.txt")) << i;
  }
}

TEST(SharedEncoding, Cases) {
  if (!has_shared("encoding/cases.json")) {
    GTEST_SKIP() << "../shared/encoding is absent: its 300 cases are not checked";
  }
  const auto cases = py::loads(read_file(shared_file("encoding/cases.json")));
  ASSERT_TRUE(cases.ok());
  ASSERT_EQ(cases->if_array()->size(), 300u);
  for (const py::Value& c : *cases->if_array()) {
    EncodeOptions options;
    options.thinking_mode = *parse_thinking_mode(*c.find("thinking_mode")->if_string());
    options.drop_thinking = *c.find("drop_thinking")->if_bool();
    if (const py::Value* effort = c.find("reasoning_effort"); effort && effort->if_string()) {
      options.reasoning_effort = *effort->if_string();
    }
    const auto text = encode(*c.find("messages")->if_array(), options);
    if (c.find("raises")) {
      EXPECT_FALSE(text.ok()) << py::dumps(c);
    } else {
      ASSERT_TRUE(text.ok()) << text.status().message();
      ASSERT_EQ(*text, *c.find("expected")->if_string()) << py::dumps(c);
    }
  }
}

}  // namespace
}  // namespace dsv4::chat
