#include <algorithm>

#include "dsv4/types.h"

namespace dsv4 {

void Histogram::add(double seconds) {
  const auto bin = std::lower_bound(kBounds.begin(), kBounds.end(), seconds) - kBounds.begin();
  ++counts[static_cast<size_t>(bin)];
  ++count;
  sum += seconds;
}

}  // namespace dsv4
