// Ctrl-C as a question to the running answer, not as the end of the program.
#pragma once

namespace dsv4::apps {

// While one lives, SIGINT raises a flag. `once`: only the first time, the second one ends the
// program as usual, for when the flag is looked at too late.
class InterruptFlag {
 public:
  explicit InterruptFlag(bool once);
  ~InterruptFlag();
  InterruptFlag(const InterruptFlag&) = delete;
  InterruptFlag& operator=(const InterruptFlag&) = delete;

  bool raised() const;
};

}  // namespace dsv4::apps
