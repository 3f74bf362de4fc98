// 64 mixed requests at a time from several threads, with random cancels, little memory and every
// tier of the prefix cache; each answer is the one of the request alone, bit for bit, and the
// recount finds everything. Two seconds by default; DSV4_SOAK_SECONDS=600 for a real one.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>

#include "api/loaded_model.h"
#include "engine/engine_core.h"
#include "unit/checkpoint/temp_dir.h"
#include "unit/engine/tiny_model.h"

namespace dsv4 {
namespace {

using Clock = std::chrono::steady_clock;
using testing::kVocab;
using testing::some_tokens;

constexpr int64_t kContext = 700;
constexpr int kConcurrent = 64, kClients = 4;

double soak_seconds() {
  const char* const text = std::getenv("DSV4_SOAK_SECONDS");
  return text ? std::atof(text) : 2.0;
}

// One answer, which a client's thread waits for.
class Answer : public EventSink {
 public:
  void on_prompt_token(RequestId, const TokenEvent& e) noexcept override { add(e); }
  void on_token(RequestId, const TokenEvent& e) noexcept override {
    add(e);
    tokens.push_back(e.token);
    seen.store(std::ssize(tokens));
  }
  void on_finish(RequestId, FinishReason r, const Usage&) noexcept override { end(r, {}); }
  void on_error(RequestId, const Status& s) noexcept override { end(FinishReason::kCancelled, s); }
  bool ended() const { return ended_.load(); }

  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  FinishReason reason = FinishReason::kCancelled;
  Status error;
  std::atomic<int64_t> seen = 0;

 private:
  void add(const TokenEvent& e) {
    if (e.logprob) logprobs.push_back(*e.logprob);
  }
  void end(FinishReason r, const Status& s) {
    reason = r;
    error = s;
    ended_.store(true);
  }
  std::atomic<bool> ended_ = false;
};

// Every second token id of a class that the last token decides.
class Parity : public TokenConstraint {
 public:
  std::span<const uint64_t> allowed() noexcept override {
    mask_.assign(kVocab / 64, last_ % 3 == 0 ? 0x5555555555555555u : 0xAAAAAAAAAAAAAAAAu);
    return mask_;
  }
  void accept(int32_t token) noexcept override { last_ = token; }

 private:
  int32_t last_ = 0;
  std::vector<uint64_t> mask_;
};

// Request number i of the mix; the same i is the same request.
Request mixed_request(uint32_t i) {
  std::mt19937 rng(i);
  const auto pick = [&](int64_t n) {
    return static_cast<int64_t>(rng() % static_cast<uint64_t>(n));
  };
  Request r;
  r.prompt = some_tokens(1 + pick(pick(3) == 0 ? 560 : 60), kVocab, static_cast<uint32_t>(pick(4)));
  if (pick(2) == 0) {
    const auto own = some_tokens(1 + pick(40), kVocab, 100 + i);
    r.prompt.insert(r.prompt.end(), own.begin(), own.end());
  }
  r.max_tokens = 1 + pick(40);
  r.ignore_eos = pick(2) == 0;
  r.priority = static_cast<int32_t>(pick(4) == 0 ? pick(3) : 0);
  r.sampling.seed = i;
  r.sampling.temperature = pick(3) == 0 ? 0.0f : 1.0f;
  r.sampling.top_p = pick(2) == 0 ? 0.9f : 1.0f;
  r.sampling.repetition_penalty = pick(4) == 0 ? 1.2f : 1.0f;
  r.sampling.logprobs = pick(2) == 0 ? 2 : -1;
  if (pick(8) == 0) r.prompt_logprobs = 0;
  if (pick(5) == 0) r.forced = {{.after = pick(10), .tokens = {7, 8}, .unless = {7}}};
  return r;
}
void give_constraint(Request& r, uint32_t i) {
  if (i % 5 == 0) r.constraint = std::make_shared<Parity>();
}

struct Loaded {
  LoadedModel model;
  std::unique_ptr<EngineCore> core;
};

std::unique_ptr<Loaded> load(EngineOptions o) {
  auto loaded = std::make_unique<Loaded>();
  auto model = load_model(testing::tiny_model_dir(), "cpu", {});
  EXPECT_TRUE(model.ok()) << model.status().message();
  if (!model.ok()) return nullptr;
  loaded->model = std::move(model).value();
  const Model& m = *loaded->model.model;
  o.context = kContext;
  auto limits = resolve_limits(o, m.config, make_cache_spec(m.config, m.plan));
  EXPECT_TRUE(limits.ok()) << limits.status().message();
  auto core =
      EngineCore::make(m, *limits, *loaded->model.backend, loaded->model.backend->ops(), {3, 4});
  EXPECT_TRUE(core.ok()) << core.status().message();
  if (!core.ok()) return nullptr;
  loaded->core = std::move(core).value();
  return loaded;
}

void run_alone(EngineCore& core, uint32_t i, Answer& answer) {
  Request r = mixed_request(i);
  give_constraint(r, i);
  ASSERT_TRUE(core.submit(std::move(r), answer).ok());
  while (!answer.ended()) ASSERT_TRUE(core.step().ok());
}

TEST(Soak, EachAnswerIsThatOfTheRequestAlone) {
  const double seconds = soak_seconds();
  const uint32_t kinds = seconds > 10 ? 64 : 12;
  std::vector<std::unique_ptr<Answer>> want;
  {
    auto plain = load({.max_sequences = 1});
    ASSERT_TRUE(plain);
    for (uint32_t i = 0; i < kinds; ++i) {
      run_alone(*plain->core, i, *want.emplace_back(std::make_unique<Answer>()));
    }
  }

  TempDir temp;
  auto loaded = load({.max_sequences = 24,
                      .cache_tokens = 30 * 256,
                      .prefill_chunk = 96,
                      .prefix = {.enabled = true,
                                 .host_bytes = size_t{2} << 20,
                                 .disk_dir = temp.file("kv"),
                                 .disk_bytes = size_t{8} << 20,
                                 .snapshot_spans = 1}});
  ASSERT_TRUE(loaded);
  EngineCore& core = *loaded->core;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  std::atomic<int64_t> answered = 0, cut = 0, wrong = 0, failed = 0;
  std::jthread runner([&](std::stop_token stop) {
    while (!stop.stop_requested()) {
      const auto report = core.step();
      if (!report.ok()) {
        ++failed;
        return;
      }
      if (report->idle()) core.wait(stop);
    }
  });
  {
    std::vector<std::jthread> clients;
    for (unsigned c = 0; c < kClients; ++c) {
      clients.emplace_back([&, c] {
        struct Live {
          uint32_t kind;
          RequestId id;
          int64_t cancel_after;
          std::unique_ptr<Answer> answer;
        };
        std::mt19937 rng(1000 + c);
        std::vector<Live> live;
        bool more = true;
        while (more || !live.empty()) {
          more = Clock::now() < end && failed == 0;
          while (more && live.size() < kConcurrent / kClients) {
            const auto kind = static_cast<uint32_t>(rng() % kinds);
            Request r = mixed_request(kind);
            give_constraint(r, kind);
            auto answer = std::make_unique<Answer>();
            const auto id = core.submit(std::move(r), *answer);
            if (!id.ok()) {
              ++failed;
              break;
            }
            const int64_t cancel_after = rng() % 4 == 0 ? static_cast<int64_t>(rng() % 12) : -1;
            live.push_back({kind, *id, cancel_after, std::move(answer)});
          }
          for (Live& l : live) {
            if (l.cancel_after >= 0 && l.answer->seen >= l.cancel_after) {
              (void)core.cancel(l.id);
              l.cancel_after = -1;
            }
          }
          std::erase_if(live, [&](const Live& l) {
            if (!l.answer->ended()) return false;
            const Answer &got = *l.answer, &full = *want[l.kind];
            const bool whole = got.reason != FinishReason::kCancelled;
            const bool same =
                got.error.ok() &&
                (whole ? got.tokens == full.tokens && got.logprobs == full.logprobs &&
                             got.reason == full.reason
                       : got.tokens.size() <= full.tokens.size() &&
                             std::equal(got.tokens.begin(), got.tokens.end(), full.tokens.begin()));
            if (!same) ++wrong;
            ++(whole ? answered : cut);
            return true;
          });
          std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
      });
    }
  }
  runner.request_stop();
  runner.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(failed, 0);
  EXPECT_GT(answered, 0);
  EXPECT_TRUE(core.check().ok()) << core.check().message();
  const EngineStats s = core.stats();
  EXPECT_EQ(s.running + s.waiting, 0);
  EXPECT_EQ(s.free_pages, s.total_pages);
  std::printf(
      "answered %lld, cancelled %lld, preempted %lld; prefix hits %lld of %lld, pages from "
      "device %lld, host %lld, disk %lld\n",
      static_cast<long long>(answered), static_cast<long long>(cut),
      static_cast<long long>(s.preemptions), static_cast<long long>(s.prefix.hits),
      static_cast<long long>(s.prefix.lookups), static_cast<long long>(s.prefix.device.page_hits),
      static_cast<long long>(s.prefix.host.page_hits),
      static_cast<long long>(s.prefix.disk.page_hits));
}

}  // namespace
}  // namespace dsv4
