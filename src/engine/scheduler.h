// Scheduler: who runs in the next step, who is admitted, who gives way. Pure host decisions,
// functions of what they are given; the engine carries them out.
//
// Rules, and why nobody starves:
//   rows       sequences that decode come first, one row each (whoever waited longest, should a
//   step
//              hold fewer). What is left of the step goes to prompts: a share to the most urgent,
//              one to the shortest rest, one to the oldest. The oldest always moves, so it ends.
//   admission  highest level first, then first come; nobody overtakes the head of the queue. A
//              request's level is its priority plus one for every kAgingSeconds it has waited, so
//              the oldest comes to be the head at last.
//   places     a request takes the place of a running one only if its priority alone is above the
//              level at which that one was admitted; what aged its way in is not thrown out by
//              those it overtook.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace dsv4 {

inline constexpr double kAgingSeconds = 5.0;

// A level that a request reaches by waiting.
int64_t aged_level(int32_t priority, double waited_seconds);

struct StepLimits {
  int64_t max_rows = 0;      // of one step
  int64_t prefill_rows = 0;  // of these, for prompts
  int64_t scored_rows = 0;   // of these, for prompts whose every row needs logits
};

// A running sequence as the scheduler sees it.
struct RunningView {
  int64_t order = 0;     // smaller = submitted earlier
  int64_t level = 0;     // at admission
  int64_t pending = 0;   // tokens not yet in its cache, > 0
  int64_t most = 0;      // rows it may run in one step, > 0
  int64_t last_run = 0;  // the step it last ran in
  bool decodes = false;  // its prompt is through
  bool scored = false;   // its rows count against scored_rows
};

// Rows of each running sequence in the next step; their sum is within the limits, and at least one
// row runs where there is any sequence.
std::vector<int64_t> plan_rows(std::span<const RunningView> running, const StepLimits& limits);

// A waiting request, or a running one, where it is about places.
struct PlaceView {
  int64_t order = 0;
  int64_t level = 0;
  int64_t pages = 0;  // running: that come free if it gives way
};

// The waiting request whose turn it is, -1 for none.
int64_t next_in_queue(std::span<const PlaceView> waiting);

// Which running sequence has to give way first: the lowest level, among equals the youngest. Only
// those below `level` are asked. -1 for none.
int64_t choose_victim(std::span<const PlaceView> running, int64_t level);

// Pages kept free at admission for what already runs, so that it does not have to give way at once.
int64_t admission_reserve(int64_t running, int64_t total_pages);

}  // namespace dsv4
