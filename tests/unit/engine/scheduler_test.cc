#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

namespace dsv4 {
namespace {

using Rows = std::vector<int64_t>;

RunningView prompt(int64_t order, int64_t pending, int64_t level = 0) {
  return {.order = order, .level = level, .pending = pending, .most = pending};
}
RunningView decode(int64_t order, int64_t last_run = 0) {
  return {.order = order, .pending = 1, .most = 1, .last_run = last_run, .decodes = true};
}

TEST(PlanRows, DecodeComesFirstAndPromptsTakeTheRest) {
  const StepLimits limits{.max_rows = 10, .prefill_rows = 8};
  using V = std::vector<RunningView>;
  EXPECT_EQ(plan_rows({}, limits), Rows{});
  EXPECT_EQ(plan_rows(V{decode(1), decode(2), decode(3)}, limits), (Rows{1, 1, 1}));
  EXPECT_EQ(plan_rows(V{prompt(1, 100)}, limits), (Rows{8}));
  EXPECT_EQ(plan_rows(V{prompt(1, 5), decode(2), prompt(3, 50)}, limits), (Rows{5, 1, 3}));
  EXPECT_EQ(plan_rows(V{prompt(1, 1)}, limits), (Rows{1}));
}

TEST(PlanRows, AShortPromptIsNotHeldUpByALongOne) {
  const StepLimits limits{.max_rows = 64, .prefill_rows = 64};
  const std::vector<RunningView> both = {prompt(1, 10000), prompt(2, 20)};
  EXPECT_EQ(plan_rows(both, limits), (Rows{44, 20}));
  // A shorter rest and a higher level each have their share; the oldest always has one.
  const std::vector<RunningView> three = {prompt(1, 10000), prompt(2, 300), prompt(3, 9000, 7)};
  EXPECT_EQ(plan_rows(three, limits), (Rows{22, 21, 21}));
}

TEST(PlanRows, AStepTooSmallForAllTakesTurns) {
  const StepLimits limits{.max_rows = 2, .prefill_rows = 2};
  const std::vector<RunningView> decoding = {decode(1, 9), decode(2, 7), decode(3, 8)};
  EXPECT_EQ(plan_rows(decoding, limits), (Rows{0, 1, 1}));
  const std::vector<RunningView> mixed = {decode(1, 9), decode(2, 7), prompt(3, 50)};
  EXPECT_EQ(plan_rows(mixed, limits), (Rows{0, 1, 1}));
}

TEST(PlanRows, ScoredPromptsShareTheRowsOfLogits) {
  const StepLimits limits{.max_rows = 64, .prefill_rows = 64, .scored_rows = 5};
  std::vector<RunningView> views = {prompt(1, 100), prompt(2, 100), prompt(3, 100)};
  views[0].scored = views[1].scored = true;
  EXPECT_EQ(plan_rows(views, limits), (Rows{5, 0, 59}));
}

TEST(PlanRows, RandomMixesStayWithinTheLimitsAndMoveTheOldest) {
  std::mt19937 rng(3);
  const auto pick = [&](int64_t n) {
    return static_cast<int64_t>(rng() % static_cast<uint64_t>(n));
  };
  for (int round = 0; round < 20000; ++round) {
    const StepLimits limits{
        .max_rows = 2 + pick(40), .prefill_rows = 1 + pick(40), .scored_rows = 1 + pick(8)};
    std::vector<RunningView> views;
    const int64_t n = 1 + pick(12);
    for (int64_t i = 0; i < n; ++i) {
      views.push_back(pick(2) ? decode(i, pick(5)) : prompt(i, 1 + pick(90), pick(3)));
      views.back().scored = !views.back().decodes && pick(4) == 0;
      views.back().most = 1 + pick(views.back().pending);
    }
    const Rows rows = plan_rows(views, limits);
    int64_t prefill = 0, scored = 0, oldest_prompt = -1;
    for (size_t i = 0; i < rows.size(); ++i) {
      ASSERT_GE(rows[i], 0);
      ASSERT_LE(rows[i], views[i].most);
      if (!views[i].decodes) prefill += rows[i];
      if (views[i].scored) scored += rows[i];
      if (!views[i].decodes && oldest_prompt < 0) oldest_prompt = static_cast<int64_t>(i);
    }
    ASSERT_LE(std::accumulate(rows.begin(), rows.end(), int64_t{0}), limits.max_rows);
    ASSERT_LE(prefill, limits.prefill_rows);
    ASSERT_LE(scored, limits.scored_rows);
    if (oldest_prompt >= 0) {
      ASSERT_GT(rows[static_cast<size_t>(oldest_prompt)], 0);
    }
  }
}

TEST(Queue, LevelsRiseWithWaiting) {
  EXPECT_EQ(aged_level(0, 0), 0);
  EXPECT_EQ(aged_level(3, kAgingSeconds * 2.5), 5);
  EXPECT_EQ(aged_level(-2, -1), -2);
  const std::vector<PlaceView> waiting = {{.order = 4, .level = 1},
                                          {.order = 2, .level = 3},
                                          {.order = 1, .level = 0},
                                          {.order = 3, .level = 3}};
  EXPECT_EQ(next_in_queue(waiting), 1);
  EXPECT_EQ(next_in_queue({}), -1);
}

TEST(Queue, TheYoungestOfTheLowestLevelGivesWay) {
  const std::vector<PlaceView> running = {
      {.order = 1, .level = 1}, {.order = 5, .level = 0}, {.order = 9, .level = 0}};
  EXPECT_EQ(choose_victim(running, 1), 2);
  EXPECT_EQ(choose_victim(running, 0), -1);
  EXPECT_EQ(choose_victim(std::span(running).first(1), 2), 0);
}

}  // namespace
}  // namespace dsv4
