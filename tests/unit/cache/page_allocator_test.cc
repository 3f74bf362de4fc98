#include "cache/page_allocator.h"

#include <gtest/gtest.h>

namespace dsv4 {
namespace {

TEST(PageAllocator, ARequestThatDoesNotFitChangesNothing) {
  PageAllocator pages(5);
  std::vector<int32_t> mine;
  ASSERT_TRUE(pages.take(3, mine).ok());
  EXPECT_EQ(pages.take(3, mine).code(), Code::kResourceExhausted);
  EXPECT_EQ(mine.size(), 3u);
  EXPECT_EQ(pages.available(), 2);
  EXPECT_TRUE(pages.check().ok());
  ASSERT_TRUE(pages.take(2, mine).ok());
  EXPECT_EQ(pages.available(), 0);
  ASSERT_TRUE(pages.give_back(mine).ok());
  EXPECT_EQ(pages.available(), 5);
  EXPECT_TRUE(pages.check().ok());
}

TEST(PageAllocator, GivingBackWhatIsFreeOrUnknownIsRefused) {
  PageAllocator pages(2);
  std::vector<int32_t> mine;
  ASSERT_TRUE(pages.take(1, mine).ok());
  ASSERT_TRUE(pages.give_back(mine).ok());
  EXPECT_EQ(pages.give_back(mine).code(), Code::kInternal);
  const std::vector<int32_t> unknown = {-1};
  EXPECT_EQ(pages.give_back(unknown).code(), Code::kInternal);
  EXPECT_TRUE(pages.check().ok());
}

TEST(PageAllocator, APageIsFreeWhenNeitherUsersNorKeeperHaveIt) {
  PageAllocator pages(3);
  std::vector<int32_t> mine;
  ASSERT_TRUE(pages.take(2, mine).ok());
  ASSERT_TRUE(pages.keep(mine[0]).ok());
  EXPECT_FALSE(pages.keep(mine[0]).ok());
  ASSERT_TRUE(pages.use(mine[0]).ok());
  EXPECT_EQ(pages.users(mine[0]), 2);
  ASSERT_TRUE(pages.give_back(mine).ok());
  EXPECT_EQ(pages.idle(), 0);
  ASSERT_TRUE(pages.give_back({&mine[0], 1}).ok());
  EXPECT_EQ(pages.idle(), 1);
  EXPECT_EQ(pages.available(), 2);
  ASSERT_TRUE(pages.check().ok());
  ASSERT_TRUE(pages.use(mine[0]).ok());
  EXPECT_EQ(pages.idle(), 0);
  ASSERT_TRUE(pages.let_go(mine[0]).ok());
  EXPECT_EQ(pages.available(), 2);
  ASSERT_TRUE(pages.give_back({&mine[0], 1}).ok());
  EXPECT_EQ(pages.available(), 3);
  EXPECT_FALSE(pages.use(mine[0]).ok());
  EXPECT_FALSE(pages.let_go(mine[0]).ok());
  EXPECT_TRUE(pages.check().ok());
}

}  // namespace
}  // namespace dsv4
