#include "eval/suite.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace dsv4::eval {
namespace {

constexpr const char* kParagraphs =
    "{\"paragraph\": 3, \"text\": \"Third.\"}\n{\"paragraph\": 12, \"text\": \"Twelfth.\"}\n";

std::string recall(const std::string& parts) {
  return R"({"id": "r/0", "task": "r", "metric": "exact", "thinking": false, "before": "Read.\n", "parts": )" +
         parts + R"(, "joiner": " / ", "after": "\nAsk?", "expected": "x"})";
}

Item only(const Result<Task>& task) {
  EXPECT_TRUE(task.ok()) << task.status().message();
  if (!task.ok() || task->items.size() != 1) return {};
  return task->items.front();
}

void expect_error(const Result<Task>& task, const std::vector<std::string>& words) {
  ASSERT_FALSE(task.ok());
  for (const std::string& word : words) {
    EXPECT_NE(task.status().message().find(word), std::string::npos) << task.status().message();
  }
}

TEST(ParseTask, PartsAreTextOrNumbersOfParagraphs) {
  const Item item = only(parse_task(recall(R"([12, "A fact.", 3])"), "r", kParagraphs, -1));
  EXPECT_EQ(item.prompt,
            "<｜begin▁of▁sentence｜><｜User｜>Read.\nTwelfth. / A fact. / "
            "Third.\nAsk?<｜Assistant｜></think>");
  EXPECT_EQ(item.expected, "x");
}

TEST(ParseTask, NoPartsLeaveTheFrame) {
  const Item item = only(parse_task(recall("[]"), "r", "", -1));
  EXPECT_EQ(item.prompt, "<｜begin▁of▁sentence｜><｜User｜>Read.\n\nAsk?<｜Assistant｜></think>");
}

TEST(ParseTask, AParagraphThatIsMissingIsNamed) {
  expect_error(parse_task(recall("[3, 4]"), "r", kParagraphs, -1), {"r.jsonl", "line 1", "4"});
  expect_error(parse_task(recall("[null]"), "r", kParagraphs, -1), {"parts", "null"});
}

TEST(ParseTask, ThinkingItemsOpenTheReasoning) {
  const Item item = only(parse_task(
      R"({"id": "s", "task": "s", "metric": "exact", "thinking": true, "messages": [{"role": "user", "content": "1 + 1?"}], "expected": "2"})",
      "s", "", -1));
  EXPECT_EQ(item.prompt, "<｜begin▁of▁sentence｜><｜User｜>1 + 1?<｜Assistant｜><think>");
  EXPECT_EQ(item.thinking, chat::ThinkingMode::kThinking);
}

TEST(ParseTask, TextsBeginWithBosAndEndWithEos) {
  const Item item = only(parse_task(
      R"({"id": "t", "task": "t", "metric": "perplexity", "text": "Once."})", "t", "", -1));
  EXPECT_EQ(item.prompt, "<｜begin▁of▁sentence｜>Once.<｜end▁of▁sentence｜>");
}

TEST(ParseTask, AToolItemHasTheCallAndThePromptBehindItsResult) {
  const auto task = parse_task(
      R"({"id": "t", "task": "t", "metric": "tool", "thinking": false, "messages": [{"role": "user", "content": "Time?"}], )"
      R"("expected_call": {"name": "clock", "arguments": {"zone": "UTC"}}, "expected_reasoning": "", )"
      R"("tool_result": "{\"time\": \"9:00\"}", "expected": "It is 9:00."})",
      "t", "", -1);
  const Item item = only(task);
  EXPECT_EQ(item.tool_name, "clock");
  EXPECT_EQ(
      item.answer_prompt,
      "<｜begin▁of▁sentence｜><｜User｜>Time?<｜Assistant｜></think>\n\n<｜DSML｜tool_calls>\n"
      "<｜DSML｜invoke name=\"clock\">\n<｜DSML｜parameter name=\"zone\" string=\"true\">UTC"
      "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</"
      "｜DSML｜tool_calls><｜end▁of▁sentence｜><｜User｜>"
      "<tool_result>{\"time\": \"9:00\"}</tool_result><｜Assistant｜></think>");
}

TEST(ParseTask, LimitTakesTheFirstItemsAndReadsNoFurther) {
  const std::string rows = recall("[]") + "\n" + recall("[]") + "\nnot JSON\n";
  const auto task = parse_task(rows, "r", "", 2);
  ASSERT_TRUE(task.ok()) << task.status().message();
  EXPECT_EQ(task->items.size(), 2u);
  expect_error(parse_task(rows, "r", "", 3), {"line 3"});
}

TEST(ParseTask, MistakesNameTheFieldAndWhatWasFound) {
  expect_error(parse_task("[]", "x", "", -1), {"x.jsonl", "an array"});
  expect_error(parse_task(R"({"metric": "bleu"})", "x", "", -1), {"metric", "bleu"});
  expect_error(parse_task(R"({"metric": "exact", "id": 5})", "x", "", -1), {"id", "an integer"});
  expect_error(
      parse_task(recall("[]") + "\n" + R"({"metric": "perplexity", "id": "a", "text": ""})", "x",
                 "", -1),
      {"line 2", "metric"});
}

TEST(LoadSuite, ShippedSetsLoadAndShortContextsComeFirst) {
  const auto tasks = load_suite("models/demo/eval", {.tasks = {}, .limit = 2});
  ASSERT_TRUE(tasks.ok()) << tasks.status().message();
  std::vector<std::string> names;
  for (const Task& task : *tasks) {
    names.push_back(task.name);
    EXPECT_EQ(task.items.size(), 2u) << task.name;
  }
  EXPECT_EQ(names, (std::vector<std::string>{"copy", "sums", "story", "tools", "reverse",
                                             "recall_1k", "recall_4k", "recall_16k"}));
}

TEST(LoadSuite, AnUnknownTaskOrFolderIsAnError) {
  const auto task = load_suite("models/demo/eval", {.tasks = {"copy", "chess"}, .limit = 1});
  ASSERT_FALSE(task.ok());
  EXPECT_NE(task.status().message().find("chess"), std::string::npos);
  EXPECT_NE(task.status().message().find("recall_1k"), std::string::npos);
  EXPECT_FALSE(load_suite("models/demo/nothing", {}).ok());
}

}  // namespace
}  // namespace dsv4::eval
