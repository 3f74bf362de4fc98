#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>
#include <vector>

namespace dsv4 {
namespace {

TEST(SplitRange, CoversEverythingOnceInOrder) {
  for (int64_t n : {0, 1, 2, 7, 64, 1000}) {
    for (int64_t parts : {1, 2, 3, 8, 70}) {
      int64_t next = 0;
      for (int64_t i = 0; i < parts; ++i) {
        const IndexRange r = split_range(n, parts, i);
        EXPECT_EQ(r.begin, next);
        EXPECT_LE(r.end - r.begin, n / parts + 1);
        EXPECT_GE(r.end - r.begin, n / parts);
        next = r.end;
      }
      EXPECT_EQ(next, n);
    }
  }
}

TEST(ThreadPool, EveryPartRunsOncePerRun) {
  for (int threads : {1, 2, 3, 7, 40}) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.threads(), threads);
    std::vector<int64_t> count(static_cast<size_t>(threads) * 64);
    for (int round = 0; round < 500; ++round) {
      pool.run([&](int part) { ++count[static_cast<size_t>(part) * 64]; });
    }
    for (int i = 0; i < threads; ++i) EXPECT_EQ(count[static_cast<size_t>(i) * 64], 500);
  }
}

// What one part wrote in a run, every other reads in the next.
TEST(ThreadPool, RunsPublishWrites) {
  for (int threads : {2, 3, 5}) {
    ThreadPool pool(threads);
    std::vector<int64_t> value(static_cast<size_t>(threads)), sum(static_cast<size_t>(threads));
    for (int round = 0; round < 100; ++round) {
      pool.run([&](int part) { value[static_cast<size_t>(part)] = round + part; });
      pool.run([&](int part) {
        sum[static_cast<size_t>(part)] = std::accumulate(value.begin(), value.end(), int64_t{0});
      });
      for (int64_t s : sum) EXPECT_EQ(s, int64_t{threads} * round + threads * (threads - 1) / 2);
    }
  }
}

// Two callers share one pool: each sees only its own work done.
TEST(ThreadPool, CallersTakeTurns) {
  ThreadPool pool(3);
  std::atomic<int> total{0};
  auto call = [&] {
    for (int i = 0; i < 200; ++i) pool.run([&](int) { total.fetch_add(1); });
  };
  std::thread other(call);
  call();
  other.join();
  EXPECT_EQ(total.load(), 2 * 200 * 3);
}

TEST(ThreadPool, DefaultUsesTheUsableCpus) {
  EXPECT_GE(usable_cpus().size(), 1u);
  EXPECT_EQ(ThreadPool(0).threads(), static_cast<int>(usable_cpus().size()));
}

TEST(ThreadPool, EnvironmentIsChecked) {
  setenv("DSV4_THREADS", "3", 1);
  EXPECT_EQ(*threads_from_environment(), 3);
  for (const char* bad : {"0", "-1", "two", "3x", "99999999999999999999"}) {
    setenv("DSV4_THREADS", bad, 1);
    EXPECT_FALSE(threads_from_environment().ok()) << bad;
  }
  unsetenv("DSV4_THREADS");
  EXPECT_EQ(*threads_from_environment(), 0);
}

}  // namespace
}  // namespace dsv4
