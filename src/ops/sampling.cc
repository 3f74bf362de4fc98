#include "ops/sampling.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace dsv4 {
namespace {

constexpr size_t kBlock = 64;  // rows of a fixed length become vector code without being asked

uint64_t block_weight(const float* logits, size_t n, float largest, float inverse_temperature) {
  float relative[kBlock];
  for (size_t i = 0; i < n; ++i)
    relative[i] = relative_weight(logits[i], largest, inverse_temperature);
  uint64_t sum = 0;
  for (size_t i = 0; i < n; ++i) sum += sample_weight(relative[i]);
  return sum;
}

// Of all tokens: one sum per block, then the block that holds the target.
int32_t sample_of_all(std::span<const float> logits, float largest, const SampleRow& row,
                      std::span<uint64_t> blocks) {
  uint64_t total = 0;
  for (size_t at = 0; at < logits.size(); at += kBlock) {
    const size_t n = std::min(kBlock, logits.size() - at);
    const float* const x = logits.data() + at;
    const uint64_t sum = n == kBlock ? block_weight(x, kBlock, largest, row.inverse_temperature)
                                     : block_weight(x, n, largest, row.inverse_temperature);
    blocks[at / kBlock] = sum;
    total += sum;
  }
  uint64_t target = sample_target(row.seed, row.position, total);
  size_t block = 0;
  for (; target >= blocks[block]; ++block) target -= blocks[block];
  for (size_t i = block * kBlock;; ++i) {
    const uint64_t weight = sample_weight(logits[i], largest, row.inverse_temperature);
    if (target < weight) return static_cast<int32_t>(i);
    target -= weight;
  }
}

}  // namespace

LogitScan scan_logits(std::span<const float> logits) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  float largest[kBlock];
  int32_t unsound[kBlock] = {};
  std::fill_n(largest, kBlock, -kInfinity);
  size_t at = 0;
  for (; at + kBlock <= logits.size(); at += kBlock) {
    const float* const x = logits.data() + at;
    for (size_t i = 0; i < kBlock; ++i) {
      largest[i] = x[i] > largest[i] ? x[i] : largest[i];
      unsound[i] |= x[i] < kInfinity ? 0 : 1;
    }
  }
  for (size_t i = 0; at < logits.size(); ++i, ++at) {
    largest[i] = std::max(largest[i], logits[at]);
    unsound[i] |= logits[at] < kInfinity ? 0 : 1;
  }
  LogitScan result{.largest = -kInfinity, .sound = true};
  for (size_t i = 0; i < kBlock; ++i) {
    result.largest = std::max(result.largest, largest[i]);
    result.sound = result.sound && unsound[i] == 0;
  }
  return result;
}

int32_t sample_token(std::span<const float> logits, float largest, const SampleRow& row,
                     std::span<uint64_t> scratch) {
  if (row.kind == SampleKind::kLargest) {
    return static_cast<int32_t>(std::find(logits.begin(), logits.end(), largest) - logits.begin());
  }
  const bool cuts_k = row.top_k > 0 && row.top_k < std::ssize(logits);
  if (!cuts_k && row.top_p >= 1 && row.min_p <= 0)
    return sample_of_all(logits, largest, row, scratch);

  // The keys of what can be drawn, best first as far as they are sorted.
  const auto relative = [&](float logit) {
    return relative_weight(logit, largest, row.inverse_temperature);
  };
  const auto weight = [&](uint64_t key) { return sample_weight(relative(key_logit(key))); };
  size_t n = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (sample_weight(relative(logits[i])) > 0)
      scratch[n++] = sample_key(logits[i], static_cast<int32_t>(i));
  }
  const auto begin = scratch.begin();
  const auto place = [&](size_t i) { return begin + static_cast<std::ptrdiff_t>(i); };
  if (cuts_k && static_cast<size_t>(row.top_k) < n) {
    const auto k = static_cast<size_t>(row.top_k);
    std::nth_element(begin, place(k - 1), place(n), std::greater<>());
    n = k;
  }
  if (row.top_p < 1) {
    uint64_t total = 0;
    for (size_t i = 0; i < n; ++i) total += weight(scratch[i]);
    const uint64_t target = top_p_target(total, row.top_p);
    // Few candidates carry most of the mass: sort no more than it takes.
    size_t sorted = 0, kept = 0;
    uint64_t sum = 0;
    while (kept < n && (kept == 0 || sum < target)) {
      if (kept == sorted) {
        const size_t next = std::min(n, std::max<size_t>(64, sorted * 8));
        std::partial_sort(place(sorted), place(next), place(n), std::greater<>());
        sorted = next;
      }
      sum += weight(scratch[kept++]);
    }
    n = kept;
  }
  if (row.min_p > 0) {
    const auto end = std::remove_if(
        begin, place(n), [&](uint64_t key) { return relative(key_logit(key)) < row.min_p; });
    n = static_cast<size_t>(end - begin);
  }
  std::sort(begin, place(n), [](uint64_t a, uint64_t b) { return key_id(a) < key_id(b); });
  uint64_t total = 0;
  for (size_t i = 0; i < n; ++i) total += weight(scratch[i]);
  uint64_t target = sample_target(row.seed, row.position, total);
  size_t i = 0;
  for (; target >= weight(scratch[i]); ++i) target -= weight(scratch[i]);
  return key_id(scratch[i]);
}

}  // namespace dsv4
