// Progress of long work on a terminal: one line on standard error that redraws itself; nothing at all
// where standard error is not a terminal.
#pragma once

#include "base/log.h"

namespace dsv4::apps {

// Draws at most some ten times a second and clears its line when done == total.
ProgressSink terminal_progress();

}  // namespace dsv4::apps
