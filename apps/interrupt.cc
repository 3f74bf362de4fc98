#include "interrupt.h"

#include <signal.h>

#include <atomic>

namespace dsv4::apps {
namespace {

std::atomic<bool> g_raised{false};  // the only thing a handler can reach
static_assert(std::atomic<bool>::is_always_lock_free);

void on_interrupt(int) {
  g_raised.store(true, std::memory_order_relaxed);
}

}  // namespace

InterruptFlag::InterruptFlag(bool once) {
  g_raised = false;
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  action.sa_flags = SA_RESTART | (once ? static_cast<int>(SA_RESETHAND) : 0);
  sigaction(SIGINT, &action, nullptr);
}

InterruptFlag::~InterruptFlag() {
  signal(SIGINT, SIG_DFL);
}

bool InterruptFlag::raised() const {
  return g_raised.load(std::memory_order_relaxed);
}

}  // namespace dsv4::apps
