// The prefix cache is exact: a sequence that begins with what others left behind gives the same
// bits as one that began from nothing, whatever was shared, evicted, moved between tiers or
// restarted.
#include "cache/prefix_index.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "unit/cache/host_backend.h"
#include "unit/checkpoint/temp_dir.h"
#include "unit/engine/fake_runner.h"

namespace dsv4 {
namespace {

namespace fs = std::filesystem;
using testing::FakeRunner;
using Tokens = std::vector<int32_t>;

constexpr size_t kPlenty = size_t{1} << 30;
constexpr Hash128 kModel = {1, 2};

struct Options {
  int64_t pages = 24;
  int64_t sequences = 3;
  size_t host_bytes = kPlenty, disk_bytes = kPlenty;
  std::string disk_dir;
  Hash128 model = kModel;
};

struct World {
  explicit World(const Options& setup) {
    const CacheSpec spec = testing::fake_spec();
    auto made = KvCache::make(spec,
                              {.max_sequences = setup.sequences,
                               .max_tokens = setup.pages * spec.span,
                               .max_rollback = 3},
                              backend);
    EXPECT_TRUE(made.ok());
    cache = std::move(made).value();
    runner = std::make_unique<FakeRunner>(
        spec, *cache,
        BatchLimits{.max_rows = 1000, .max_sequences = 3, .max_logit_rows = 1000, .context = 1000});
    auto copier = StateCopier::make(spec, *cache, backend);
    EXPECT_TRUE(copier.ok());
    std::unique_ptr<DiskStore> disk;
    if (!setup.disk_dir.empty()) {
      auto opened = DiskStore::open(setup.disk_dir, setup.model);
      EXPECT_TRUE(opened.ok()) << opened.status().message();
      if (opened.ok()) disk = std::move(opened).value();
    }
    index = std::make_unique<PrefixIndex>(
        *cache, std::move(copier).value(),
        PrefixLimits{.host_bytes = setup.host_bytes, .disk_bytes = setup.disk_bytes},
        std::move(disk));
  }

  SequenceCache open() {
    auto seq = cache->open();
    EXPECT_TRUE(seq.ok());
    return seq.ok() ? std::move(seq).value() : SequenceCache();
  }
  // Runs tokens [seq.length(), end); the logits of the last row.
  Result<std::vector<float>> run(SequenceCache& seq, const Tokens& tokens, int64_t end) {
    const auto first = static_cast<size_t>(seq.length());
    const std::vector<SequenceRows> rows = {{.cache = &seq,
                                             .tokens = std::span<const int32_t>(tokens).subspan(
                                                 first, static_cast<size_t>(end) - first),
                                             .logits = LogitRows::kLast}};
    DSV4_ASSIGN(const LogitsView logits, runner->run(rows, nullptr));
    DSV4_TRY(seq.commit(end - seq.length()));
    return std::vector<float>(logits.row(0).begin(), logits.row(0).end());
  }
  // A whole prompt with what the index has; stores its end. The length that was reused.
  int64_t answer(const Tokens& tokens, std::vector<float>* logits = nullptr) {
    SequenceCache seq = open();
    const auto n = static_cast<int64_t>(tokens.size());
    const int64_t reused = index->restore(tokens, n - 1, seq);
    EXPECT_EQ(seq.length(), reused);
    auto got = run(seq, tokens, n);
    EXPECT_TRUE(got.ok()) << got.status().message();
    if (logits && got.ok()) *logits = *got;
    index->store(tokens, seq, n - 1);
    EXPECT_TRUE(index->check().ok()) << index->check().message();
    return reused;
  }

  testing::HostBackend backend;
  std::unique_ptr<KvCache> cache;
  std::unique_ptr<FakeRunner> runner;
  std::unique_ptr<PrefixIndex> index;
};

std::vector<float> from_nothing(const Tokens& tokens) {
  World world({.host_bytes = 0});
  SequenceCache seq = world.open();
  auto logits = world.run(seq, tokens, static_cast<int64_t>(tokens.size()));
  EXPECT_TRUE(logits.ok());
  return logits.ok() ? *logits : std::vector<float>();
}

// Prompts that share beginnings of every length.
Tokens prompt(int64_t n, uint32_t family, int64_t branch = 1000, uint32_t variant = 0) {
  Tokens tokens;
  for (int64_t i = 0; i < n; ++i) {
    const auto salt = static_cast<uint64_t>(i >= branch ? family * 31 + variant : family);
    tokens.push_back(static_cast<int32_t>((static_cast<uint64_t>(i) * 7 + salt * 13) % 40));
  }
  return tokens;
}

TEST(PrefixIndex, AConversationReusesAllButTheNewTurn) {
  World world({});
  const Tokens all = prompt(200, 1);
  std::vector<float> logits;
  for (const int64_t n : {1, 2, 16, 17, 40, 41, 64, 65, 150, 200}) {
    const Tokens turn(all.begin(), all.begin() + n);
    const int64_t before = world.index->stats().reused_tokens;
    const int64_t reused = world.answer(turn, &logits);
    EXPECT_EQ(logits, from_nothing(turn)) << n;
    EXPECT_EQ(world.index->stats().reused_tokens - before, reused);
  }
  // The same again: only its last token runs.
  EXPECT_EQ(world.answer(all, &logits), 199);
  EXPECT_EQ(logits, from_nothing(all));
  const Tokens longer = prompt(201, 1);
  EXPECT_EQ(world.index->find(longer, 200).length, 199);
  EXPECT_EQ(world.index->find(longer, 100).length, 64);
}

TEST(PrefixIndex, WithoutASnapshotItIsNoHitButTheBranchIsKnown) {
  World world({});
  world.answer(prompt(100, 1));
  const Tokens other = prompt(90, 1, 50, 1);
  const PrefixIndex::Match match = world.index->find(other, 89);
  EXPECT_EQ(match.length, 0);
  EXPECT_EQ(match.agreeing, 50);
  // A snapshot where they part serves a third.
  SequenceCache seq = world.open();
  ASSERT_TRUE(world.run(seq, other, 50).ok());
  world.index->store(other, seq, 50);
  ASSERT_TRUE(world.run(seq, other, 90).ok());
  EXPECT_TRUE(world.index->check().ok()) << world.index->check().message();
  const Tokens third = prompt(80, 1, 50, 2);
  std::vector<float> logits;
  EXPECT_EQ(world.answer(third, &logits), 50);
  EXPECT_EQ(logits, from_nothing(third));
}

TEST(PrefixIndex, WhatASequenceDoesNotHoldCannotBeStored) {
  World world({});
  const Tokens tokens = prompt(40, 1);
  SequenceCache seq = world.open();
  ASSERT_TRUE(world.run(seq, tokens, 40).ok());
  world.index->store(tokens, seq, 36);  // four rows back, three are kept
  EXPECT_EQ(world.index->find(tokens, 39).length, 0);
  world.index->store(tokens, seq, 37);
  EXPECT_EQ(world.index->find(tokens, 39).length, 37);
  // One that began at 37 has nothing of what a beginning at 36 would need.
  SequenceCache next = world.open();
  ASSERT_EQ(world.index->restore(tokens, 39, next), 37);
  world.index->store(tokens, next, 36);
  EXPECT_EQ(world.index->find(tokens, 36).length, 0);
}

TEST(PrefixIndex, SharedRowsAreNotRolledBackInto) {
  World world({});
  const Tokens tokens = prompt(40, 1);
  world.answer(tokens);
  SequenceCache seq = world.open();
  ASSERT_EQ(world.index->restore(tokens, 39, seq), 39);
  EXPECT_FALSE(seq.rollback(1).ok());
  ASSERT_TRUE(world.run(seq, tokens, 40).ok());
  EXPECT_TRUE(seq.rollback(1).ok());  // what it wrote itself
  EXPECT_FALSE(seq.rollback(39).ok());
  seq.clear();
  EXPECT_TRUE(world.index->check().ok()) << world.index->check().message();
}

// Random prompts, chunks, stores, and frees with little memory, against a run from nothing.
void random_operations(const Options& setup, unsigned seed, int rounds) {
  World world(setup);
  std::mt19937 rng(seed);
  const auto pick = [&](int64_t n) {
    return static_cast<int64_t>(rng() % static_cast<uint64_t>(n));
  };
  struct Live {
    SequenceCache seq;
    Tokens tokens;
  };
  std::vector<Live> live;
  for (int round = 0; round < rounds; ++round) {
    const bool full = std::ssize(live) == setup.sequences;
    if (full || (!live.empty() && pick(3) == 0)) {
      live.erase(live.begin() + pick(std::ssize(live)));
    } else if (live.empty() || pick(2) == 0) {
      Live l{world.open(), prompt(1 + pick(110), static_cast<uint32_t>(pick(3)), pick(100),
                                  static_cast<uint32_t>(pick(4)))};
      world.index->restore(l.tokens, std::ssize(l.tokens) - 1, l.seq);
      live.push_back(std::move(l));
    } else {
      Live& l = live[static_cast<size_t>(pick(std::ssize(live)))];
      const int64_t left = std::ssize(l.tokens) - l.seq.length();
      if (left > 0) {
        const int64_t end = l.seq.length() + 1 + pick(left);
        auto logits = world.run(l.seq, l.tokens, end);
        if (logits.ok()) {
          ASSERT_EQ(*logits, from_nothing(Tokens(l.tokens.begin(), l.tokens.begin() + end)));
        } else {
          ASSERT_EQ(logits.status().code(), Code::kResourceExhausted);
          ASSERT_EQ(world.cache->idle_pages(), 0);
          l.seq.clear();
        }
      }
      const int64_t length = l.seq.length() - pick(4);
      world.index->store(l.tokens, l.seq, length);
    }
    ASSERT_TRUE(world.index->check().ok()) << world.index->check().message();
  }
  const PrefixCacheStats stats = world.index->stats();
  EXPECT_GT(stats.hits, rounds / 40);
  live.clear();
  EXPECT_TRUE(world.index->check().ok()) << world.index->check().message();
  EXPECT_EQ(world.cache->free_pages() + world.cache->idle_pages(), world.cache->total_pages());
}

TEST(PrefixIndex, RandomOperationsChangeNoBit) {
  World sizes({});
  auto copier = StateCopier::make(testing::fake_spec(), *sizes.cache, sizes.backend);
  ASSERT_TRUE(copier.ok());
  const size_t page = (*copier)->page_bytes(), snapshot = (*copier)->snapshot_bytes(31);
  random_operations({.pages = 40}, 1, 3000);
  random_operations({.pages = 12}, 2, 3000);
  random_operations({.pages = 9, .host_bytes = 3 * page + 4 * snapshot}, 3, 3000);
  TempDir temp;
  random_operations({.pages = 9,
                     .host_bytes = page + 2 * snapshot,
                     .disk_bytes = 40 * (page + snapshot),
                     .disk_dir = temp.file("a")},
                    4, 2000);
  random_operations(
      {.pages = 12, .host_bytes = 0, .disk_bytes = kPlenty, .disk_dir = temp.file("b")}, 5, 2000);
}

TEST(PrefixIndex, WhatLeftTheDeviceComesBackFromHostAndDisk) {
  TempDir temp;
  for (const bool disk : {false, true}) {
    World world({.pages = 8,
                 .host_bytes = disk ? size_t{0} : kPlenty,
                 .disk_dir = disk ? temp.file("tier") : ""});
    const Tokens first = prompt(100, 1);
    world.answer(first);
    for (uint32_t i = 2; i < 6; ++i) world.answer(prompt(100, i));  // each needs 7 of 8 pages
    std::vector<float> logits;
    EXPECT_EQ(world.answer(first, &logits), 99);
    EXPECT_EQ(logits, from_nothing(first));
    const PrefixCacheStats stats = world.index->stats();
    EXPECT_GT(stats.device.evictions, 0);
    EXPECT_GT((disk ? stats.disk : stats.host).page_hits, 0);
  }
}

TEST(DiskTier, ARestartKeepsIt) {
  TempDir temp;
  const Options setup{.disk_dir = temp.file("kept")};
  const Tokens one = prompt(100, 1), two = prompt(77, 1, 40, 3);
  {
    World world(setup);
    world.answer(one);
    world.answer(two);
  }
  World world(setup);
  std::vector<float> logits;
  EXPECT_EQ(world.answer(one, &logits), 99);
  EXPECT_EQ(logits, from_nothing(one));
  EXPECT_EQ(world.answer(two, &logits), 76);
  EXPECT_EQ(logits, from_nothing(two));
  const PrefixCacheStats stats = world.index->stats();
  EXPECT_EQ(stats.rejected_files, 0);
  EXPECT_EQ(stats.disk.snapshot_hits, 2);
}

TEST(DiskTier, OneProcessAtATime) {
  TempDir temp;
  auto first = DiskStore::open(temp.file("one"), kModel);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(DiskStore::open(temp.file("one"), kModel).status().code(), Code::kUnavailable);
  *first = nullptr;
  EXPECT_TRUE(DiskStore::open(temp.file("one"), kModel).ok());
}

TEST(DiskTier, ItStaysWithinItsBytes) {
  TempDir temp;
  const size_t limit = 20000;
  World world({.disk_bytes = limit, .disk_dir = temp.file("small")});
  for (uint32_t i = 0; i < 30; ++i) world.answer(prompt(60, i));
  world.index->flush();
  size_t bytes = 0;
  for (const auto& file : fs::directory_iterator(temp.file("small"))) bytes += file.file_size();
  EXPECT_EQ(bytes, world.index->stats().disk.bytes);
  EXPECT_LE(bytes, limit);
  EXPECT_GT(world.index->stats().disk.evictions, 0);
}

std::vector<fs::path> stored_files(const std::string& dir) {
  std::vector<fs::path> files;
  for (const auto& file : fs::directory_iterator(dir)) {
    if (file.path().extension() == ".kv") files.push_back(file.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

// Whatever happens to a file: it is dropped, and answers stay right.
TEST(DiskTier, DamagedAndForeignFilesAreDropped) {
  const Tokens tokens = prompt(100, 1);
  const std::vector<float> want = from_nothing(tokens);
  enum class Damage { kTruncate, kFlipData, kFlipHeader, kEmpty, kGrow, kRename, kForeign };
  for (const Damage damage : {Damage::kTruncate, Damage::kFlipData, Damage::kFlipHeader,
                              Damage::kEmpty, Damage::kGrow, Damage::kRename, Damage::kForeign}) {
    TempDir temp;
    Options setup{.disk_dir = temp.file("d")};
    {
      World world(setup);
      world.answer(tokens);
    }
    const std::vector<fs::path> files = stored_files(setup.disk_dir);
    ASSERT_EQ(files.size(), 7u);  // six spans and a snapshot
    for (const fs::path& file : files) {
      const auto size = fs::file_size(file);
      const auto flip = [&](uintmax_t at) {
        std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
        f.seekg(static_cast<std::streamoff>(at));
        const int c = f.get();
        f.seekp(static_cast<std::streamoff>(at));
        f.put(static_cast<char>(c ^ 0x10));
      };
      switch (damage) {
        case Damage::kTruncate:
          fs::resize_file(file, size - 1);
          break;
        case Damage::kFlipData:
          flip(size - 9);
          break;
        case Damage::kFlipHeader:
          flip(70);
          break;
        case Damage::kEmpty:
          fs::resize_file(file, 0);
          break;
        case Damage::kGrow:
          fs::resize_file(file, size + 1);
          break;
        case Damage::kRename:
          fs::rename(file, file.parent_path() / ("0" + file.filename().string()));
          break;
        case Damage::kForeign:
          break;
      }
    }
    if (damage == Damage::kForeign) setup.model = {9, 9};
    World world(setup);
    std::vector<float> logits;
    EXPECT_EQ(world.answer(tokens, &logits), 0) << static_cast<int>(damage);
    EXPECT_EQ(logits, want) << static_cast<int>(damage);
    EXPECT_GT(world.index->stats().rejected_files, 0) << static_cast<int>(damage);
    EXPECT_EQ(world.answer(tokens, &logits), 99);
    EXPECT_EQ(logits, want);
  }
}

// One torn page in the middle: what lies before it still serves.
TEST(DiskTier, ATornPageCostsWhatLiesBehindIt) {
  TempDir temp;
  const Options setup{.disk_dir = temp.file("torn")};
  const Tokens tokens = prompt(100, 1), start(tokens.begin(), tokens.begin() + 40);
  std::vector<fs::path> early;
  {
    World world(setup);
    world.answer(start);
    world.index->flush();
    early = stored_files(setup.disk_dir);
    world.answer(tokens);
  }
  int torn = 0;
  for (const fs::path& file : stored_files(setup.disk_dir)) {
    if (std::find(early.begin(), early.end(), file) != early.end()) continue;
    std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
    f.seekp(-20, std::ios::end);
    f.put(0x55);
    f.put(0x66);
    ++torn;
  }
  ASSERT_GT(torn, 0);
  World world(setup);
  std::vector<float> logits;
  EXPECT_EQ(world.answer(tokens, &logits), 39);
  EXPECT_EQ(logits, from_nothing(tokens));
  EXPECT_GT(world.index->stats().rejected_files, 0);
}

TEST(DiskTier, AKilledProcessLeavesNothingThatMisleads) {
  TempDir temp;
  const Options setup{.disk_dir = temp.file("killed")};
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    World world(setup);
    for (uint32_t i = 0;; ++i) world.answer(prompt(20 + i % 80, i % 50));
  }
  for (int wait = 0; wait < 2000; ++wait) {
    if (fs::exists(setup.disk_dir) && stored_files(setup.disk_dir).size() > 20) break;
    usleep(5000);
  }
  kill(child, SIGKILL);
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  World world(setup);
  EXPECT_TRUE(world.index->check().ok()) << world.index->check().message();
  EXPECT_GT(world.index->stats().disk.pages, 0);
  for (uint32_t i = 0; i < 50; ++i) {
    const Tokens tokens = prompt(20 + i % 80, i % 50);
    std::vector<float> logits;
    world.answer(tokens, &logits);
    ASSERT_EQ(logits, from_nothing(tokens));
  }
  EXPECT_GT(world.index->stats().hits, 0);
}

}  // namespace
}  // namespace dsv4
