// What the model card promises, on the first items of each set. The limits are those of the whole
// sets; on so few items they ask for all of them to be right.
#include "eval/demo_model.h"

namespace dsv4::eval {
namespace {

TEST(DemoModel, AnswersTheFirstItemsOfEverySet) {
  const auto demo = Demo::load();
  ASSERT_TRUE(demo.ok()) << demo.status().message();
  const OpTable& ops = demo->loaded.backend->ops();
  const struct {
    const char *task, *figure;
    int64_t items;
    double least;
  } promises[] = {
      {"copy", "accuracy", 6, 0.97},      {"reverse", "accuracy", 6, 0.97},
      {"sums", "accuracy", 6, 0.95},      {"tools", "answer", 3, 0.95},
      {"recall_1k", "accuracy", 5, 0.98}, {"recall_4k", "accuracy", 1, 0.97},
  };
  for (const auto& p : promises) {
    EXPECT_GE(demo->figure(p.task, p.figure, p.items, ops), p.least) << p.task;
  }
}

TEST(DemoModel, ToolCallsParseWithTheRightArguments) {
  const auto demo = Demo::load();
  ASSERT_TRUE(demo.ok()) << demo.status().message();
  const auto report = demo->run("tools", 3, demo->loaded.backend->ops());
  ASSERT_TRUE(report.ok()) << report.status().message();
  for (const char* name : {"tools.parsed", "tools.arguments"}) {
    const Figure* figure = find_figure(*report, name);
    ASSERT_NE(figure, nullptr);
    EXPECT_EQ(figure->value, 1.0) << name;
  }
}

TEST(DemoModel, StoriesArePredictedAndDraftedAsInTraining) {
  const auto demo = Demo::load();
  ASSERT_TRUE(demo.ok()) << demo.status().message();
  const auto report = demo->run("story", 100, demo->loaded.backend->ops());
  ASSERT_TRUE(report.ok()) << report.status().message();
  const Figure* perplexity = find_figure(*report, "story.perplexity");
  ASSERT_NE(perplexity, nullptr);
  // bf16_perplexity of eval/report.json: the same weights in PyTorch without any quantiser.
  EXPECT_NEAR(perplexity->value, 1.4298, 0.02 * 1.4298);
  const Figure* drafts = find_figure(*report, "story.mtp_acceptance");
  ASSERT_NE(drafts, nullptr);
  EXPECT_GE(drafts->value, 0.70);
}

TEST(DemoModel, AReplyDoesNotDependOnWhatIsDecodedBesideIt) {
  const auto demo = Demo::load();
  ASSERT_TRUE(demo.ok()) << demo.status().message();
  const auto tasks = load_suite(std::string(kDemo) + "/eval", {.tasks = {"sums"}, .limit = 5});
  ASSERT_TRUE(tasks.ok()) << tasks.status().message();
  int64_t tokens = -1;
  for (const int64_t together : {1, 5}) {
    const auto report = evaluate(demo->loaded, demo->loaded.backend->ops(), demo->tokenizer, *tasks,
                                 {.max_sequences = together, .prefill_chunk = 256}, {});
    ASSERT_TRUE(report.ok()) << report.status().message();
    const TaskReport& task = report->tasks.front();
    if (tokens >= 0) {
      EXPECT_EQ(task.completion_tokens, tokens);
    }
    tokens = task.completion_tokens;
    EXPECT_EQ(task.figures.front().value, 1.0);
  }
}

}  // namespace
}  // namespace dsv4::eval
