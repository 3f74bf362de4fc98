#include "engine/scheduler.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <tuple>

namespace dsv4 {
namespace {

// A pool this small has no pages to spare; a large one keeps at most this part.
constexpr int64_t kReserveDivisor = 16;

bool more_urgent(const RunningView& a, const RunningView& b) {
  return std::tuple(-a.level, a.order) < std::tuple(-b.level, b.order);
}

class RowPlan {
 public:
  RowPlan(std::span<const RunningView> running, const StepLimits& limits)
      : running_(running), left_(limits), rows_(running.size(), 0) {}

  // Up to n more rows for sequence i, as far as the limits reach.
  int64_t give(size_t i, int64_t n) {
    const RunningView& seq = running_[i];
    n = std::min({n, std::min(seq.pending, seq.most) - rows_[i], left_.max_rows});
    if (!seq.decodes) n = std::min(n, left_.prefill_rows);
    if (seq.scored) n = std::min(n, left_.scored_rows);
    n = std::max<int64_t>(n, 0);
    rows_[i] += n;
    left_.max_rows -= n;
    if (!seq.decodes) left_.prefill_rows -= n;
    if (seq.scored) left_.scored_rows -= n;
    return n;
  }
  int64_t prefill_left() const { return std::min(left_.max_rows, left_.prefill_rows); }
  std::vector<int64_t> take() { return std::move(rows_); }

 private:
  std::span<const RunningView> running_;
  StepLimits left_;
  std::vector<int64_t> rows_;
};

}  // namespace

int64_t aged_level(int32_t priority, double waited_seconds) {
  return int64_t{priority} + static_cast<int64_t>(std::max(0.0, waited_seconds) / kAgingSeconds);
}

std::vector<int64_t> plan_rows(std::span<const RunningView> running, const StepLimits& limits) {
  RowPlan plan(running, limits);
  std::vector<size_t> decoding, prompts;
  for (size_t i = 0; i < running.size(); ++i) {
    (running[i].decodes ? decoding : prompts).push_back(i);
  }
  // A prompt that waits may take one row even where decoding could fill the step.
  const int64_t spare = limits.max_rows - (prompts.empty() ? 0 : 1);
  if (std::ssize(decoding) > spare) {
    std::stable_sort(decoding.begin(), decoding.end(),
                     [&](size_t a, size_t b) { return running[a].last_run < running[b].last_run; });
    decoding.resize(static_cast<size_t>(std::max<int64_t>(spare, 0)));
  }
  for (const size_t i : decoding) plan.give(i, 1);
  if (prompts.empty()) return plan.take();

  std::sort(prompts.begin(), prompts.end(),
            [&](size_t a, size_t b) { return more_urgent(running[a], running[b]); });
  const size_t shortest =
      *std::min_element(prompts.begin(), prompts.end(), [&](size_t a, size_t b) {
        return std::tuple(running[a].pending, running[a].order) <
               std::tuple(running[b].pending, running[b].order);
      });
  const size_t oldest = *std::min_element(prompts.begin(), prompts.end(), [&](size_t a, size_t b) {
    return running[a].order < running[b].order;
  });
  std::vector<size_t> shares = {oldest};  // first, so that it moves however small the step is
  for (const size_t i : {prompts.front(), shortest}) {
    if (std::find(shares.begin(), shares.end(), i) == shares.end()) shares.push_back(i);
  }
  for (size_t k = 0; k < shares.size(); ++k) {
    const auto to_come = static_cast<int64_t>(shares.size() - k);
    plan.give(shares[k], (plan.prefill_left() + to_come - 1) / to_come);
  }
  for (const size_t i : prompts) plan.give(i, plan.prefill_left());
  return plan.take();
}

int64_t next_in_queue(std::span<const PlaceView> waiting) {
  const auto it =
      std::min_element(waiting.begin(), waiting.end(), [](const PlaceView& a, const PlaceView& b) {
        return std::tuple(-a.level, a.order) < std::tuple(-b.level, b.order);
      });
  return it == waiting.end() ? -1 : it - waiting.begin();
}

int64_t choose_victim(std::span<const PlaceView> running, int64_t level) {
  int64_t victim = -1;
  for (int64_t i = 0; i < std::ssize(running); ++i) {
    const PlaceView& seq = running[static_cast<size_t>(i)];
    if (seq.level >= level) continue;
    if (victim >= 0) {
      const PlaceView& best = running[static_cast<size_t>(victim)];
      if (std::tuple(seq.level, -seq.order) >= std::tuple(best.level, -best.order)) continue;
    }
    victim = i;
  }
  return victim;
}

int64_t admission_reserve(int64_t running, int64_t total_pages) {
  return std::min(running, total_pages / kReserveDivisor);
}

}  // namespace dsv4
