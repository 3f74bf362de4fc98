// The machine's memory.
#pragma once

#include <cstddef>

namespace dsv4 {

// Bytes installed, and bytes that programs can still take; pages that only cache files count as free. 0
// where the system does not say.
struct HostMemory {
  size_t total = 0, available = 0;
};

HostMemory host_memory();

}  // namespace dsv4
