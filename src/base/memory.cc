#include "base/memory.h"

#include <fstream>
#include <string>

namespace dsv4 {

HostMemory host_memory() {
  HostMemory memory;
  std::ifstream meminfo("/proc/meminfo");
  std::string key, rest;
  size_t kib = 0;
  while (meminfo >> key >> kib) {
    std::getline(meminfo, rest);
    if (key == "MemTotal:") memory.total = kib << 10;
    if (key == "MemAvailable:") memory.available = kib << 10;
  }
  return memory;
}

}  // namespace dsv4
