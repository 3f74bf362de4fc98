#include "model/rope.h"

#include <algorithm>
#include <cmath>

namespace dsv4 {
namespace {

// The dim whose wavelength makes n turns over the original length.
double correction_dim(const RopePlan& plan, int64_t r, double turns) {
  constexpr double kPi = 3.14159265358979323846;
  const double length = static_cast<double>(plan.yarn.original_max_position_embeddings);
  return static_cast<double>(r) * std::log(length / (turns * 2.0 * kPi)) / (2.0 * std::log(plan.theta));
}

}  // namespace

std::vector<float> rope_frequencies(const RopePlan& plan, int64_t r) {
  std::vector<float> freqs(static_cast<size_t>(r / 2));
  for (size_t i = 0; i < freqs.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(r);
    freqs[i] = 1.0f / std::pow(static_cast<float>(plan.theta), exponent);
  }
  if (plan.yarn.original_max_position_embeddings == 0) return freqs;

  const double low = std::max(std::floor(correction_dim(plan, r, plan.yarn.beta_fast)), 0.0);
  double high = std::min(std::ceil(correction_dim(plan, r, plan.yarn.beta_slow)), static_cast<double>(r - 1));
  if (low == high) high += 0.001;
  const float factor = static_cast<float>(plan.yarn.factor);
  for (size_t i = 0; i < freqs.size(); ++i) {
    const float ramp = (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
    const float smooth = 1.0f - std::clamp(ramp, 0.0f, 1.0f);
    freqs[i] = freqs[i] / factor * (1.0f - smooth) + freqs[i] * smooth;
  }
  return freqs;
}

}  // namespace dsv4
