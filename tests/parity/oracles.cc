#include <algorithm>
#include <cmath>
#include <set>

#include "base/str.h"
#include "compare.h"
#include "formats/weight_format.h"

namespace dsv4::parity {
namespace {

double softplus(double x) {
  return x > 20.0 ? x : std::log1p(std::exp(x));
}

// Score and its uncertainty under FP32 sums.
struct Score {
  double value = 0.0, error = 0.0;
};

// Chosen ids against all candidates: nobody left out may be better than somebody chosen.
std::string check_best(const std::vector<Score>& score, const std::vector<int32_t>& chosen,
                       int64_t row) {
  const std::set<int32_t> set(chosen.begin(), chosen.end());
  if (set.size() != chosen.size()) return cat("row ", row, ": an id was chosen twice");
  if (!set.empty() && (*set.begin() < 0 || *set.rbegin() >= static_cast<int32_t>(score.size()))) {
    return cat("row ", row, ": id out of range");
  }
  for (int32_t out = 0; out < static_cast<int32_t>(score.size()); ++out) {
    if (set.count(out)) continue;
    const Score& o = score[static_cast<size_t>(out)];
    for (const int32_t in : chosen) {
      const Score& i = score[static_cast<size_t>(in)];
      if (o.value > i.value + i.error + o.error) {
        return cat("row ", row, ": ", in, " with score ", i.value, " was chosen before ", out,
                   " with ", o.value, ", and that is no near-tie");
      }
    }
  }
  return "";
}

}  // namespace

std::string check_router(const OpCase& c, const std::vector<HostArray>& found) {
  const HostArray &x = array(c.arrays, "x"), &ids = array(found, "ids"),
                  &weights = array(found, "weights");
  const bench::HostWeight& gate = c.weights.front();
  const bool hash = c.name.find("hash") != std::string::npos;
  const int64_t T = x.shape[0], D = x.shape[1], E = gate.rows, k = ids.shape[1];
  std::vector<float> row(static_cast<size_t>(D));
  std::vector<Score> raw(static_cast<size_t>(E)), biased(static_cast<size_t>(E));
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t e = 0; e < E; ++e) {
      dequantise_row(gate.format, gate.matrices[0]->elements.data(), nullptr, 1.0f, E, D, e,
                     row.data());
      double sum = 0.0, magnitude = 0.0;
      for (int64_t i = 0; i < D; ++i) {
        const double p = static_cast<double>(to_float(x.as<bf16>()[t * D + i])) *
                         static_cast<double>(row[static_cast<size_t>(i)]);
        sum += p;
        magnitude += std::fabs(p);
      }
      // sqrt(softplus) has a slope below 1/2.
      const Score s{std::sqrt(softplus(sum)), 0.5 * sum_error(D / 8) * magnitude + 1e-6};
      raw[static_cast<size_t>(e)] = s;
      const float bias = array(c.arrays, "bias").as<float>()[e];
      biased[static_cast<size_t>(e)] = {s.value + static_cast<double>(bias), s.error};
    }
    const int32_t* begin = ids.as<int32_t>() + t * k;
    const std::vector<int32_t> chosen(begin, begin + k);
    if (hash) {
      const int32_t token = array(c.arrays, "tokens").as<int32_t>()[t];
      if (!std::equal(begin, begin + k, array(c.arrays, "tid2eid").as<int32_t>() + token * k)) {
        return cat("router.ids row ", t, ": not the row of the table");
      }
    } else {
      const std::string message = check_best(biased, chosen, t);
      if (!message.empty()) return cat("router.ids ", message);
      for (int64_t i = 1; i < k; ++i) {
        const Score &p = biased[static_cast<size_t>(begin[i - 1])],
                    &q = biased[static_cast<size_t>(begin[i])];
        if (q.value > p.value + p.error + q.error)
          return cat("router.ids row ", t, ": not in order of score");
      }
    }
    double sum = 0.0, error = 0.0;
    for (const int32_t id : chosen) {
      sum += raw[static_cast<size_t>(id)].value;
      error = std::max(error, raw[static_cast<size_t>(id)].error);
    }
    for (int64_t i = 0; i < k; ++i) {
      const double expected = raw[static_cast<size_t>(begin[i])].value / sum * 1.5;
      const double w = static_cast<double>(weights.as<float>()[t * k + i]);
      if (!(std::fabs(w - expected) <=
            1e-5 * expected + 1.5 * static_cast<double>(k) * error / sum)) {
        return cat("router.weights [", t, ", ", i, "]: expected ", expected, ", found ", w);
      }
    }
  }
  return "";
}

std::string check_selection(const OpCase& c, const std::vector<HostArray>& found) {
  const HostArray &q = array(found, "q"), &selected = array(found, "selected"),
                  &count = array(found, "selected_count");
  const HostArray &weights = array(c.arrays, "weights"), &keys = array(c.arrays, "keys");
  const bench::HostBatch& batch = c.batches.front();
  const int64_t T = q.shape[0], heads = q.shape[1], e = q.shape[2], topk = selected.shape[1],
                per_page = keys.shape[1];
  const int64_t ratio = bench::kSpan / per_page;
  const float scale =
      static_cast<float>(1.0 / std::sqrt(static_cast<double>(e) * static_cast<double>(heads)));
  for (int64_t t = 0; t < T; ++t) {
    const int64_t visible = (batch.positions[static_cast<size_t>(t)] + 1) / ratio,
                  n = std::min(topk, visible);
    const int32_t* row = selected.as<int32_t>() + t * topk;
    if (count.as<int32_t>()[t] != n) {
      return cat("index_select.selected_count [", t, "]: expected ", n, ", found ",
                 count.as<int32_t>()[t]);
    }
    for (int64_t i = 0; i < topk; ++i) {
      if (i < n ? row[i] < 0 || (i > 0 && row[i] <= row[i - 1]) : row[i] != -1) {
        return cat("index_select.selected row ", t, ": expected ascending indices, then -1; found ",
                   row[i], " at ", i);
      }
    }
    if (n == visible) continue;  // everything: ascending and in number, hence right
    std::vector<Score> score;
    for (int64_t j = 0; j < visible; ++j) {
      const int64_t seq = batch.row_seq[static_cast<size_t>(t)];
      const int64_t page =
          batch.seq_pages[static_cast<size_t>(seq * batch.max_pages + j / per_page)];
      const bf16* key = keys.as<bf16>() + (page * per_page + j % per_page) * e;
      Score s;
      for (int64_t h = 0; h < heads; ++h) {
        double dot = 0.0, magnitude = 0.0;
        for (int64_t i = 0; i < e; ++i) {
          const double p = static_cast<double>(to_float(q.as<bf16>()[(t * heads + h) * e + i])) *
                           static_cast<double>(to_float(key[i]));
          dot += p;
          magnitude += std::fabs(p);
        }
        const double w =
            static_cast<double>(round_bf16(to_float(weights.as<bf16>()[t * heads + h]) * scale));
        s.value += std::max(0.0, dot) * w;
        s.error += magnitude * std::fabs(w);
      }
      s.error *= 0x1p-24 * static_cast<double>(heads + 16);
      score.push_back(s);
    }
    const std::string message = check_best(score, std::vector<int32_t>(row, row + n), t);
    if (!message.empty()) return cat("index_select.selected ", message);
  }
  return "";
}

std::string check_tokens(const std::vector<HostArray>& reference, const std::vector<HostArray>& found) {
  const HostArray &expected = array(reference, "tokens"), &tokens = array(found, "tokens");
  for (int64_t r = 0; r < tokens.shape[0]; ++r) {
    if (expected.as<int32_t>()[r] != tokens.as<int32_t>()[r]) {
      return cat("sample.tokens [", r, "]: expected ", expected.as<int32_t>()[r], ", found ",
                 tokens.as<int32_t>()[r]);
    }
  }
  return "";
}

}  // namespace dsv4::parity
