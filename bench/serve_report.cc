#include "bench/serve_report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/str.h"
#include "text/py_json.h"

namespace dsv4::bench {
namespace {

std::vector<double> gaps_of(const std::vector<ServeSample>& samples) {
  std::vector<double> out;
  for (const ServeSample& s : samples) out.insert(out.end(), s.gaps.begin(), s.gaps.end());
  return out;
}

std::vector<double> first_tokens(const std::vector<ServeSample>& samples) {
  std::vector<double> out;
  for (const ServeSample& s : samples) {
    if (s.error.empty() && s.first_token > 0) out.push_back(s.first_token - s.start);
  }
  return out;
}

std::string fixed(double x, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, x);
  return text;
}

// One panel: the share of `values` up to a time, over a logarithmic axis of milliseconds.
std::string panel(std::vector<double> values, double left, std::string_view name) {
  constexpr double kWidth = 360, kHeight = 220, kTop = 60;
  std::sort(values.begin(), values.end());
  std::string out = cat("<text x=\"", fixed(left, 0), "\" y=\"48\" font-weight=\"bold\">", name, "</text>\n");
  if (values.empty()) return out;
  const double low = std::floor(std::log10(std::max(1e-6, values.front()) * 1e3));
  const double high = std::max(low + 1, std::ceil(std::log10(std::max(1e-6, values.back()) * 1e3)));
  const auto x = [&](double seconds) {
    return left + (std::log10(std::max(1e-6, seconds) * 1e3) - low) / (high - low) * kWidth;
  };
  const auto y = [&](double share) { return kTop + (1 - share) * kHeight; };
  for (double power = low; power <= high; ++power) {
    const double at = left + (power - low) / (high - low) * kWidth;
    out += cat("<line class=\"grid\" x1=\"", fixed(at, 1), "\" x2=\"", fixed(at, 1), "\" y1=\"", fixed(kTop, 0),
               "\" y2=\"", fixed(kTop + kHeight, 0), "\"/><text x=\"", fixed(at, 1), "\" y=\"",
               fixed(kTop + kHeight + 18, 0), "\" text-anchor=\"middle\">", py::float_repr(std::pow(10.0, power)),
               " ms</text>\n");
  }
  for (const double share : {0.0, 0.5, 0.9, 1.0}) {
    out += cat("<line class=\"grid\" x1=\"", fixed(left, 0), "\" x2=\"", fixed(left + kWidth, 0), "\" y1=\"",
               fixed(y(share), 1), "\" y2=\"", fixed(y(share), 1), "\"/><text x=\"", fixed(left - 6, 0), "\" y=\"",
               fixed(y(share) + 4, 1), "\" text-anchor=\"end\">", fixed(share * 100, 0), "%</text>\n");
  }
  out += "<polyline points=\"";
  const size_t step = std::max<size_t>(1, values.size() / 500);
  for (size_t i = 0; i < values.size(); i += step) {
    const double share = static_cast<double>(i + 1) / static_cast<double>(values.size());
    out += cat(fixed(x(values[i]), 1), ",", fixed(y(share), 1), " ");
  }
  out += cat(fixed(x(values.back()), 1), ",", fixed(y(1), 1), "\"/>\n");
  return out;
}

}  // namespace

Percentiles percentiles(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(values.size())));
    return values[std::clamp<size_t>(rank, 1, values.size()) - 1];
  };
  return {at(0.5), at(0.9), at(0.99)};
}

ServeReport summarise(const std::vector<ServeSample>& samples) {
  ServeReport r;
  std::vector<double> whole;
  for (const ServeSample& s : samples) {
    ++r.requests;
    r.seconds = std::max(r.seconds, s.end);
    if (!s.error.empty()) {
      ++r.failed;
      continue;
    }
    whole.push_back(s.end - s.start);
    r.prompt_tokens += s.prompt_tokens;
    r.cached_tokens += s.cached_tokens;
    r.completion_tokens += s.completion_tokens;
  }
  r.first_token = percentiles(first_tokens(samples));
  r.gap = percentiles(gaps_of(samples));
  r.whole = percentiles(std::move(whole));
  return r;
}

std::string to_csv(const std::vector<ServeSample>& samples) {
  std::string out =
      "conversation,turn,start_s,first_token_s,end_s,gap_p50_s,gap_p99_s,prompt_tokens,cached_tokens,"
      "completion_tokens,error\n";
  for (const ServeSample& s : samples) {
    const Percentiles gap = percentiles(s.gaps);
    std::string error = s.error;
    for (char& c : error) {
      if (c == '"' || c == '\n' || c == '\r') c = '\'';
    }
    out += cat(s.conversation, ",", s.turn, ",", fixed(s.start, 6), ",", fixed(s.first_token, 6), ",", fixed(s.end, 6),
               ",", fixed(gap.p50, 6), ",", fixed(gap.p99, 6), ",", s.prompt_tokens, ",", s.cached_tokens, ",",
               s.completion_tokens, ",", error.empty() ? "" : cat("\"", error, "\""), "\n");
  }
  return out;
}

std::string to_svg(const std::vector<ServeSample>& samples, const std::string& title) {
  std::string safe;
  for (const char c : title) {
    safe += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
  }
  std::string out =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 860 320\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<style>.grid{stroke:#ccc}polyline{fill:none;stroke:#4d6bfe;stroke-width:2}</style>\n"
      "<rect width=\"860\" height=\"320\" fill=\"white\"/>\n";
  out += cat("<text x=\"50\" y=\"24\" font-size=\"14\">", safe, "</text>\n");
  out += panel(first_tokens(samples), 50, "time to first token: share of requests");
  out += panel(gaps_of(samples), 480, "between tokens: share of tokens");
  return out + "</svg>\n";
}

}  // namespace dsv4::bench
