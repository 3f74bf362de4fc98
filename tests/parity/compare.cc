#include "compare.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/str.h"
#include "formats/bf16.h"

namespace dsv4::parity {
namespace {

double value(const HostArray& a, int64_t i) {
  if (a.dtype == DType::kBF16) return static_cast<double>(to_float(a.as<bf16>()[i]));
  if (a.dtype == DType::kF32) return static_cast<double>(a.as<float>()[i]);
  return static_cast<double>(a.as<int32_t>()[i]);
}

bool same_bits(const HostArray& a, const HostArray& b, int64_t i) {
  const auto size = dtype_size(a.dtype);
  return memcmp(a.bytes.data() + static_cast<size_t>(i) * size,
                b.bytes.data() + static_cast<size_t>(i) * size, size) == 0;
}

double ulp(DType dtype, double x) {
  if (x == 0.0) return 0.0;
  return std::ldexp(1.0, std::ilogb(x) - (dtype == DType::kBF16 ? 7 : 23));
}

bool in_columns(Columns columns, int64_t column, int64_t width, int64_t rope) {
  if (columns == Columns::kAll) return true;
  return (column >= width - rope) == (columns == Columns::kRope);
}

struct Places {
  int64_t elements = 0, different = 0;
  double worst = 0.0;  // difference over bound
  int64_t at = -1;
};

// One row under one rule.
std::string compare_row(const Rule& rule, const OpCase& c, const HostArray& ref,
                        const HostArray& found, const HostArray* magnitude, int64_t row,
                        int64_t width, int64_t rope, Places& places) {
  double row_max = 0.0, dot = 0.0, ref2 = 0.0, found2 = 0.0;
  bool finite = true;
  for (int64_t i = row * width; i < (row + 1) * width; ++i) {
    const double r = value(ref, i), f = value(found, i);
    if (std::isfinite(r))
      row_max = std::max(row_max, std::fabs(r));
    else
      finite = false;
    dot += r * f;
    ref2 += r * r;
    found2 += f * f;
  }
  for (int64_t column = 0; column < width; ++column) {
    if (!in_columns(rule.columns, column, width, rope)) continue;
    const int64_t i = row * width + column;
    const double r = value(ref, i), f = value(found, i);
    if (std::isnan(r) != std::isnan(f)) {
      return cat(rule.op, ".", ref.name, " [row ", row, ", ", column, "]: reference ", r,
                 ", found ", f, "; NaN positions must match");
    }
    if (std::isnan(r)) continue;
    if (std::isinf(r) || std::isinf(f)) {
      if (r == f) continue;
      return cat(rule.op, ".", ref.name, " [row ", row, ", ", column, "]: reference ", r,
                 ", found ", f, "; Inf positions must match");
    }
    ++places.elements;
    if (r == f) continue;
    ++places.different;
    double scale = 0.0;
    if (rule.scale == Scale::kRowMax) scale = row_max;
    if (rule.scale == Scale::kPair) {
      const double other = value(ref, i ^ 1);
      scale = std::isfinite(other) ? std::max(std::fabs(r), std::fabs(other)) : 0.0;
    }
    if (rule.scale == Scale::kMagnitude && magnitude)
      scale = value(*magnitude, i) * sum_error(c.sum_length);
    const double bound = rule.ulps * (ref.dtype == DType::kBF16
                                          ? ulp(ref.dtype, std::max(std::fabs(r), std::fabs(f)))
                                          : 0.0) +
                         rule.relative * std::fabs(r) + rule.scaled * scale;
    const double ratio = bound > 0.0 ? std::fabs(r - f) / bound : INFINITY;
    if (ratio > places.worst) {
      places.worst = ratio;
      places.at = i;
    }
  }
  if (rule.cosine > 0.0 && finite && ref2 > 0.0) {
    const double cosine = dot / std::sqrt(ref2 * found2);
    if (!(cosine >= rule.cosine)) {
      return cat(rule.op, ".", ref.name, " row ", row, ": cosine ", cosine, ", expected at least ",
                 rule.cosine, " (", rule.reason, ")");
    }
  }
  return "";
}

std::string compare_array(const Rule& rule, const OpCase& c, const HostArray& ref,
                          const HostArray& found, const HostArray* magnitude) {
  const int64_t width = ref.shape[ref.shape.rank - 1];
  const int64_t rows = width ? ref.shape.elements() / width : 0;
  const HostArray& before = array(c.arrays, ref.name);
  const size_t row_bytes = static_cast<size_t>(width) * dtype_size(ref.dtype);
  Places places;
  for (int64_t row = 0; row < rows; ++row) {
    // What the reference left alone has to be untouched.
    const size_t at = static_cast<size_t>(row) * row_bytes;
    if (ref.use == bench::Use::kInOut &&
        memcmp(before.bytes.data() + at, ref.bytes.data() + at, row_bytes) == 0) {
      if (memcmp(found.bytes.data() + at, ref.bytes.data() + at, row_bytes) == 0) continue;
      return cat(rule.op, ".", ref.name, " row ", row,
                 ": changed, but the op has nothing to write there");
    }
    const std::string message =
        compare_row(rule, c, ref, found, magnitude, row, width, ref.rope_dims, places);
    if (!message.empty()) return message;
  }
  if (places.worst > 1.0) {
    return cat(rule.op, ".", ref.name, " [row ", places.at / width, ", ", places.at % width,
               "]: reference ", value(ref, places.at), ", found ", value(found, places.at), ": ",
               places.worst, " times the tolerance (", rule.reason, ")");
  }
  if (ref.dtype != DType::kBF16) return "";  // FP32 results differ in their last bits as a rule
  const double allowed = std::max(3.0, rule.flips * static_cast<double>(places.elements));
  if (static_cast<double>(places.different) > allowed) {
    return cat(rule.op, ".", ref.name, ": ", places.different, " of ", places.elements,
               " elements differ; chance explains ", allowed, " (", rule.reason, ")");
  }
  return "";
}

}  // namespace

const HostArray& array(const std::vector<HostArray>& arrays, std::string_view name) {
  for (const HostArray& a : arrays) {
    if (a.name == name) return a;
  }
  static const HostArray none;
  return none;
}

std::string compare(const OpCase& c, const std::vector<HostArray>& reference,
                    const std::vector<HostArray>& found, const std::vector<HostArray>* magnitude,
                    Sums sums) {
  for (size_t i = 0; i < reference.size(); ++i) {
    const HostArray& ref = reference[i];
    if (ref.dtype == DType::kI32 || (c.op == "router" && ref.name == "weights")) continue;
    const std::vector<Rule> rules = rules_for(c.op, ref.name, sums);
    if (rules.empty())
      return cat(c.op, ".", ref.name, ": no tolerance rule; add one with its reason to rules.cc");
    for (const Rule& rule : rules) {
      const std::string message =
          compare_array(rule, c, ref, found[i], magnitude ? &(*magnitude)[i] : nullptr);
      if (!message.empty()) return message;
    }
  }
  return "";
}

std::string check_written(const std::vector<HostArray>& outputs) {
  for (const HostArray& a : outputs) {
    if (a.use != bench::Use::kOut) continue;
    HostArray poison = a;
    memset(poison.bytes.data(),
           a.dtype == DType::kI32 ? bench::kPoisonIndex & 0xff : bench::kPoison,
           poison.bytes.size());
    for (int64_t i = 0; i < a.shape.elements(); ++i) {
      if (same_bits(a, poison, i))
        return cat(a.name, " [", i, "] of ", to_string(a.shape), ": never written");
    }
  }
  return "";
}

std::string judge(const OpCase& c, const std::vector<HostArray>& reference,
                  const std::vector<HostArray>& found, const std::vector<HostArray>* magnitude,
                  Sums sums) {
  std::string message = compare(c, reference, found, magnitude, sums);
  if (message.empty() && c.op == "router") message = check_router(c, found);
  if (message.empty() && c.op == "index_select") message = check_selection(c, found);
  if (message.empty() && c.op == "sample") message = check_tokens(reference, found);
  return message;
}

}  // namespace dsv4::parity
