// Comparing what an op left on two backends: one rule per op, output and kind of column.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "bench/op_case.h"

namespace dsv4::parity {

using bench::HostArray;
using bench::OpCase;

enum class Columns : uint8_t {
  kAll,
  kRounded,  // dims 0..d-r-1 of a key/value row, where kv8 acts
  kRope,     // the last r
};

enum class Scale : uint8_t {
  kNone,
  kRowMax,     // largest finite |reference| of the row
  kPair,       // of the two values that RoPE rotates into each other
  kMagnitude,  // sum |x||w| of this element
};

// How a backend sums products.
enum class Sums : uint8_t {
  kFp32,
  kTensorCores,  // 16 products at a time, aligned to the largest and cut, not rounded
};

// |found - reference| <= ulps * ulp + relative * |reference| + scaled * scale, and no more than
// `flips` of the elements (but always a few) may differ at all. All zero: bit for bit.
struct Rule {
  std::string_view op, output;  // output: a prefix, so that "y" covers y0, y1, ...
  Columns columns = Columns::kAll;
  double ulps = 0.0;  // BF16 or FP32 steps at the larger of both values
  double relative = 0.0;
  Scale scale = Scale::kNone;
  double scaled = 0.0;  // for kMagnitude: per term of the sum, see sum_error()
  double flips = 1.0;
  double cosine = 0.0;  // of each row, where > 0
  std::string_view reason;
  Sums sums = Sums::kFp32;
};

// Those for `sums`, or where there are none of their own, those for FP32.
std::vector<Rule> rules_for(std::string_view op, std::string_view output, Sums sums = Sums::kFp32);

// "" if the outputs agree under the rules; else the worst place. `magnitude`: outputs of the case's
// absolute() on reference, or nullptr. NaN and Inf positions must match. Elements of an in-out
// array that reference left alone must be untouched.
std::string compare(const OpCase& c, const std::vector<HostArray>& reference,
                    const std::vector<HostArray>& found, const std::vector<HostArray>* magnitude,
                    Sums sums = Sums::kFp32);

// What the rules cannot say: routing and selection are judged by scores computed here in FP64, so
// that a difference is accepted only between candidates whose scores are as good as equal.
std::string check_router(const OpCase& c, const std::vector<HostArray>& found);
std::string check_selection(const OpCase& c, const std::vector<HostArray>& found);
// Sampling is exact.
std::string check_tokens(const std::vector<HostArray>& reference, const std::vector<HostArray>& found);

// Every check there is for this op.
std::string judge(const OpCase& c, const std::vector<HostArray>& reference,
                  const std::vector<HostArray>& found, const std::vector<HostArray>* magnitude,
                  Sums sums = Sums::kFp32);

// "" if no output element still has the poison pattern.
std::string check_written(const std::vector<HostArray>& outputs);

// Error of an FP32 sum of n terms, relative to the sum of their magnitudes.
double sum_error(int64_t n);

const HostArray& array(const std::vector<HostArray>& arrays, std::string_view name);

}  // namespace dsv4::parity
