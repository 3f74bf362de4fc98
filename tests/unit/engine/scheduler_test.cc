#include "engine/scheduler.h"

#include <gtest/gtest.h>

namespace dsv4 {
namespace {

using Rows = std::vector<int64_t>;

TEST(PlanStep, DecodeRowsComeFirstAndPromptsShareTheRest) {
  EXPECT_EQ(plan_step(Rows{}, 8, 10), Rows{});
  EXPECT_EQ(plan_step(Rows{1, 1, 1}, 8, 10), (Rows{1, 1, 1}));
  EXPECT_EQ(plan_step(Rows{100}, 8, 10), (Rows{8}));
  EXPECT_EQ(plan_step(Rows{100, 1, 50}, 8, 10), (Rows{8, 1, 0}));
  EXPECT_EQ(plan_step(Rows{5, 1, 50}, 8, 10), (Rows{5, 1, 3}));
  EXPECT_EQ(plan_step(Rows{100, 1, 1, 1}, 8, 9), (Rows{6, 1, 1, 1}));
}

}  // namespace
}  // namespace dsv4
