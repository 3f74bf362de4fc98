#include <gtest/gtest.h>

#include <cmath>

#include "eval/evaluate.h"

namespace dsv4::eval {
namespace {

Report sample() {
  TaskReport recall;
  recall.task = "recall_1k";
  recall.items = 100;
  recall.figures = {{"accuracy", 0.97, 100}};
  TaskReport story;
  story.task = "story";
  story.figures = {{"perplexity", 1.43, 900}, {"mtp_acceptance", std::nan(""), 0}};
  return {.backend = "cpu", .tasks = {recall, story}};
}

std::vector<std::string> check(const std::vector<std::string>& texts) {
  std::vector<Requirement> requirements;
  for (const std::string& text : texts) {
    auto r = parse_requirement(text);
    EXPECT_TRUE(r.ok()) << text;
    if (r.ok()) requirements.push_back(*r);
  }
  return unmet(sample(), requirements);
}

TEST(Requirement, LimitsHoldOnTheirBorder) {
  EXPECT_TRUE(check({"recall_1k.accuracy>=0.97", "story.perplexity<=1.43"}).empty());
  const auto lines = check({"recall_1k.accuracy>=0.98", "story.perplexity<=1.42"});
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_NE(lines[0].find("recall_1k.accuracy"), std::string::npos);
  EXPECT_NE(lines[0].find("0.97"), std::string::npos);
}

TEST(Requirement, WhatIsAbsentOrNotANumberIsNotMet) {
  EXPECT_EQ(
      check({"recall_4k.accuracy>=0", "story.mtp_acceptance>=0", "story.mtp_acceptance<=1"}).size(),
      3u);
}

TEST(Requirement, WhatIsNoLimitIsRefused) {
  for (const char* text : {"", "recall_1k.accuracy", "a.b>0.5", "a.b>=", ">=1", "a.b>=high",
                           "a.b>=1x", "a.b=1", "a.b<=nan"}) {
    EXPECT_FALSE(parse_requirement(text).ok()) << text;
  }
}

TEST(ReportText, HasALineForEachFigure) {
  const std::string text = to_text(sample());
  for (const char* word : {"recall_1k", "97.0 %", "perplexity", "1.4300"}) {
    EXPECT_NE(text.find(word), std::string::npos) << text;
  }
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 4);
}

}  // namespace
}  // namespace dsv4::eval
