// Workspace: scratch memory of one stream. It grows the first time a shape is seen and never again,
// so a steady-state step allocates nothing. Regions live until the Scope that took them ends.
#pragma once

#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "dsv4/status.h"

namespace dsv4 {

class Backend;

class Workspace {
 public:
  explicit Workspace(Backend& backend) : backend_(backend) {}

  class Scope {
   public:
    explicit Scope(Workspace& ws) : ws_(ws), block_(ws.block_), used_(ws.used_) {}
    ~Scope() {
      ws_.block_ = block_;
      ws_.used_ = used_;
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

    // n elements, aligned to 256 bytes, in the backend's memory, uninitialised.
    template <class T>
    Result<T*> take(int64_t n) {
      DSV4_ASSIGN(void* p, ws_.take_bytes(static_cast<size_t>(n) * sizeof(T)));
      return static_cast<T*>(p);
    }

   private:
    Workspace& ws_;
    size_t block_, used_;
  };

  size_t bytes() const;        // held
  int64_t growths() const { return growths_; }  // allocations so far; constant in steady state

 private:
  Result<void*> take_bytes(size_t bytes);

  Backend& backend_;
  std::vector<Buffer> blocks_;
  size_t block_ = 0, used_ = 0;
  int64_t growths_ = 0;
};

}  // namespace dsv4
