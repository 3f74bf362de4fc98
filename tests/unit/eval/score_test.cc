#include "eval/score.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace dsv4::eval {
namespace {

py::Value json(const char* text) {
  auto value = py::loads(text);
  EXPECT_TRUE(value.ok()) << text;
  return value.ok() ? *value : py::Value();
}

TEST(ExactMatch, ComparesTheContentOfAWellFormedReply) {
  Item item;
  item.expected = "moon, wolf";
  EXPECT_TRUE(exact_match(item, "moon, wolf<｜end▁of▁sentence｜>"));
  EXPECT_FALSE(exact_match(item, "moon, wolf"));  // cut off
  EXPECT_FALSE(exact_match(item, "moon, wolf <｜end▁of▁sentence｜>"));
  EXPECT_FALSE(exact_match(item, "moon<｜end▁of▁sentence｜>"));
  EXPECT_FALSE(exact_match(item, ""));
}

TEST(ExactMatch, InThinkingModeReasoningComesFirstAndIsNotCompared) {
  Item item;
  item.thinking = chat::ThinkingMode::kThinking;
  item.expected = "7";
  EXPECT_TRUE(exact_match(item, "3 + 4 = 7</think>7<｜end▁of▁sentence｜>"));
  EXPECT_FALSE(exact_match(item, "7<｜end▁of▁sentence｜>"));
}

class ToolCallScore : public testing::Test {
 protected:
  ToolCallScore() {
    item.tool_name = "set_timer";
    item.tool_arguments = json(R"({"minutes": 5, "label": "tea"})");
  }
  static std::string call(const std::string& name, const std::string& parameters) {
    return "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"" + name + "\">\n" + parameters +
           "</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
  }
  static std::string parameter(const std::string& key, const char* is_string,
                               const std::string& value) {
    return "<｜DSML｜parameter name=\"" + key + "\" string=\"" + is_string + "\">" + value +
           "</｜DSML｜parameter>\n";
  }
  const std::string minutes = parameter("minutes", "false", "5");
  const std::string label = parameter("label", "true", "tea");
  const std::string eos = "<｜end▁of▁sentence｜>";
  Item item;
};

TEST_F(ToolCallScore, ArgumentsMayComeInAnyOrder) {
  const ToolScore score = score_call(item, call("set_timer", label + minutes) + eos);
  EXPECT_TRUE(score.parsed);
  EXPECT_TRUE(score.arguments);
}

TEST_F(ToolCallScore, AWrongValueTypeNameOrCountParsesButIsNotRight) {
  for (const std::string& reply :
       {call("set_timer", parameter("minutes", "false", "6") + label),
        call("set_timer", parameter("minutes", "true", "5") + label),
        call("get_time", minutes + label), call("set_timer", minutes),
        call("set_timer", minutes + label + parameter("again", "false", "true"))}) {
    const ToolScore score = score_call(item, reply + eos);
    EXPECT_TRUE(score.parsed) << reply;
    EXPECT_FALSE(score.arguments) << reply;
  }
}

TEST_F(ToolCallScore, TextOrABrokenBlockDoesNotParse) {
  const std::string whole = call("set_timer", minutes + label);
  for (const std::string& reply :
       {std::string("Timer set.") + eos, whole.substr(0, whole.size() - 5), std::string(),
        whole + "more" + eos}) {
    EXPECT_FALSE(score_call(item, reply).parsed) << reply;
  }
}

TEST(SameJson, OrderOfMembersDoesNotMatterOrderOfItemsDoes) {
  EXPECT_TRUE(same_json(json(R"({"a": [1, {"b": null}], "c": "x"})"),
                        json(R"({"c": "x", "a": [1, {"b": null}]})")));
  EXPECT_FALSE(same_json(json("[1, 2]"), json("[2, 1]")));
  EXPECT_FALSE(same_json(json("[1]"), json("[1, 1]")));
  EXPECT_FALSE(same_json(json(R"({"a": 1})"), json(R"({"b": 1})")));
  EXPECT_FALSE(same_json(json("1"), json("\"1\"")));
  EXPECT_TRUE(same_json(json("1.50"), json("15e-1")));
}

TEST(TextScore, PerplexityOfAUniformModelIsTheVocabulary) {
  TextScore score;
  const std::vector<float> flat(8, -3.0f);
  for (int32_t token = 0; token < 8; ++token) score.add_token(flat, token);
  EXPECT_NEAR(score.perplexity(), 8.0, 1e-9);
  EXPECT_EQ(score.tokens(), 8);
}

TEST(TextScore, PerplexityIsTheGeometricMeanOfInverseProbabilities) {
  TextScore score;
  // Probabilities 1/2 and 1/8; large offsets do not overflow.
  const std::vector<float> logits = {1000.0f + std::log(4.0f), 1000.0f + std::log(3.0f), 1000.0f};
  score.add_token(logits, 0);
  score.add_token(logits, 2);
  EXPECT_NEAR(score.perplexity(), 4.0, 1e-3);  // logits near 1000 carry 6e-5
}

TEST(TextScore, NothingScoredIsNotANumber) {
  const TextScore score;
  EXPECT_TRUE(std::isnan(score.perplexity()));
  EXPECT_TRUE(std::isnan(score.acceptance()));
}

TEST(TextScore, DraftsCountWhereTheTextIsWhatTheModelWouldHaveSaid) {
  // Position p: the main model says main[p] for p + 1, the drafter draft[p] for p + 2.
  const std::vector<int32_t> tokens = {9, 1, 2, 3, 4};
  const std::vector<int32_t> main = {1, 2, 7, 4, 5};
  const std::vector<int32_t> draft = {2, 0, 4, 0, 0};
  TextScore score;
  score.add_drafts(tokens, main, draft);
  // p = 0: drafted, 2 == main[1]. p = 1: drafted, 0 != main[2]. p = 2: the text left the model's
  // way.
  EXPECT_EQ(score.drafted(), 2);
  EXPECT_NEAR(score.acceptance(), 0.5, 1e-12);
}

TEST(TextScore, TextsTooShortForADraftAddNone) {
  TextScore score;
  for (const std::vector<int32_t>& tokens :
       {std::vector<int32_t>{}, std::vector<int32_t>{1}, std::vector<int32_t>{1, 2}}) {
    score.add_drafts(tokens, tokens, tokens);
  }
  EXPECT_EQ(score.drafted(), 0);
}

TEST(Argmax, TakesTheLowestIndexOnTies) {
  EXPECT_EQ(argmax(std::vector<float>{0, 2, 1, 2}), 1);
}

}  // namespace
}  // namespace dsv4::eval
