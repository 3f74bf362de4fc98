// Teacher forcing over texts: the main model's logits at every position, then the MTP block on the
// same rows, fed with the token behind each.
#include <algorithm>
#include <cmath>
#include <span>

#include "engine/runner.h"
#include "eval/evaluate.h"
#include "eval/score.h"

namespace dsv4::eval {
namespace {

constexpr int64_t kRows = 1024;  // of one pass, or one text where it is longer
constexpr int64_t kTexts = 8;    // of one pass

std::vector<int32_t> best_tokens(const LogitsView& logits) {
  std::vector<int32_t> best;
  for (int64_t r = 0; r < logits.rows; ++r) best.push_back(argmax(logits.row(r)));
  return best;
}

class TextPass {
 public:
  TextPass(KvCache& cache, Runner& runner) : cache_(cache), runner_(runner) {}

  // Row i of a pass is the same position in both models, so the main model's streams are in place.
  Status run(std::span<const std::vector<int32_t>> texts, TextScore& score) {
    std::vector<std::vector<int32_t>> ahead;
    for (const auto& text : texts) {
      ahead.emplace_back(text.begin() + 1, text.end());
      ahead.back().push_back(text.back());  // the last row's draft is never asked for
    }
    std::vector<SequenceCache> held;
    DSV4_ASSIGN(const ForwardBatch batch, prepare(texts, held));
    DSV4_TRY(
        forward(runner_.model(), runner_.activations(), batch, cache_.layers(), runner_.context()));
    DSV4_ASSIGN(const LogitsView logits, runner_.read_logits(batch.R));
    int64_t row = 0;
    for (const auto& text : texts) {
      for (size_t i = 0; i + 1 < text.size(); ++i) {
        score.add_token(logits.row(row + static_cast<int64_t>(i)), text[i + 1]);
      }
      row += std::ssize(text);
    }
    const std::vector<int32_t> main = best_tokens(logits);
    if (runner_.model().plan.mtp.empty()) return {};

    const size_t block = runner_.model().plan.layers.size();
    std::vector<SequenceCache> held_ahead;
    DSV4_ASSIGN(const ForwardBatch next, prepare(ahead, held_ahead));
    Activations& act = runner_.activations();
    DSV4_TRY(forward_mtp(runner_.model(), 0, act.streams, act, next, cache_.layers()[block],
                         runner_.context()));
    DSV4_ASSIGN(const LogitsView drafts, runner_.read_logits(next.R));
    const std::vector<int32_t> draft = best_tokens(drafts);
    size_t at = 0;
    for (const auto& text : texts) {
      score.add_drafts(text, std::span(main).subspan(at, text.size()),
                       std::span(draft).subspan(at, text.size()));
      at += text.size();
    }
    return {};
  }

 private:
  Result<ForwardBatch> prepare(std::span<const std::vector<int32_t>> texts,
                               std::vector<SequenceCache>& held) {
    std::vector<SequenceRows> rows;
    for (size_t i = 0; i < texts.size(); ++i) {
      DSV4_ASSIGN(SequenceCache sequence, cache_.open());
      held.push_back(std::move(sequence));
    }
    for (size_t i = 0; i < texts.size(); ++i) {
      rows.push_back({.cache = &held[i], .tokens = texts[i], .logits = LogitRows::kAll});
    }
    return runner_.prepare(rows);
  }

  KvCache& cache_;
  Runner& runner_;
};

}  // namespace

Status score_texts(const LoadedModel& loaded, const OpTable& ops,
                   const std::vector<std::vector<int32_t>>& texts, TaskReport& report,
                   const ProgressSink& progress) {
  const Model& model = *loaded.model;
  int64_t longest = 1;
  for (const auto& text : texts) longest = std::max(longest, std::ssize(text));
  const int64_t rows = std::max(kRows, longest);
  const CacheSpec spec = make_cache_spec(model.config, model.plan);
  const int64_t spans = (longest + spec.span - 1) / spec.span;
  // The MTP block's rows have sequences of their own.
  DSV4_ASSIGN(const auto cache, KvCache::make(spec,
                                              {.max_sequences = 2 * kTexts,
                                               .max_tokens = 2 * kTexts * spans * spec.span,
                                               .max_rollback = 0},
                                              *loaded.backend));
  DSV4_ASSIGN(
      const auto runner,
      Runner::make(
          model, *cache,
          {.max_rows = rows, .max_sequences = kTexts, .max_logit_rows = rows, .context = longest},
          *loaded.backend, ops));
  TextPass pass(*cache, *runner);
  TextScore score;
  for (size_t begin = 0; begin < texts.size();) {
    size_t end = begin;
    for (int64_t used = 0; end < texts.size() && end - begin < static_cast<size_t>(kTexts); ++end) {
      used += std::ssize(texts[end]);
      if (end > begin && used > rows) break;
    }
    DSV4_TRY(pass.run(std::span(texts).subspan(begin, end - begin), score));
    begin = end;
    if (progress) {
      progress({.stage = report.task,
                .done = static_cast<int64_t>(begin),
                .total = std::ssize(texts),
                .unit = "texts"});
    }
  }
  if (score.tokens() > 0) {
    report.figures.push_back({"perplexity", score.perplexity(), score.tokens()});
  }
  if (score.drafted() > 0) {
    report.figures.push_back({"mtp_acceptance", score.acceptance(), score.drafted()});
  }
  return {};
}

}  // namespace dsv4::eval
