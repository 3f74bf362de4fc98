// Philox4x32-10 (Salmon et al. 2011): a random number as a pure function of key and counter, so a
// draw depends on the seed and the position alone.
#pragma once

#include <array>
#include <cstdint>

#include "formats/host_device.h"

namespace dsv4 {

DSV4_HD inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> ctr,
                                                  std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * ctr[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * ctr[2];
    ctr = {static_cast<uint32_t>(p1 >> 32) ^ ctr[1] ^ key[0], static_cast<uint32_t>(p1),
           static_cast<uint32_t>(p0 >> 32) ^ ctr[3] ^ key[1], static_cast<uint32_t>(p0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return ctr;
}

// 64 random bits of the draw for `counter`.
DSV4_HD inline uint64_t random_bits_at(uint64_t seed, uint64_t counter) {
  const auto r =
      philox4x32({static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return (uint64_t{r[1]} << 32) | r[0];
}

}  // namespace dsv4
