#include "server/constraint.h"

#include "base/str.h"
#include "text/chat_format.h"
#include "text/json_grammar.h"
#include "text/regex.h"

namespace dsv4::server {

using Expr = GrammarBuilder::Expr;
using Mask = std::vector<uint64_t>;

struct ConstraintMaker::Vocabulary {
  std::shared_ptr<const TokenTable> table;
  const Tokenizer* tokenizer = nullptr;
  int32_t eos = -1, think_end = -1, dsml = -1;
  Mask reasoning;  // all but the end of the text and tool markers
  Mask text;       // all but tool markers
};

namespace {

constexpr std::string_view kBeforeMarker = "\n\n<";

class AnswerConstraint final : public TokenConstraint {
 public:
  AnswerConstraint(std::shared_ptr<const ConstraintMaker::Vocabulary> vocabulary,
                   std::shared_ptr<GrammarAutomaton> automaton, bool whole, bool may_call,
                   bool reasons_first)
      : vocabulary_(std::move(vocabulary)),
        automaton_(std::move(automaton)),
        may_call_(may_call),
        reasoning_(reasons_first),
        in_grammar_(whole) {
    if (automaton_) state_ = automaton_->start();
  }

  std::span<const uint64_t> allowed() noexcept override {
    if (reasoning_) return vocabulary_->reasoning;
    if (in_grammar_) {
      mask_ = automaton_->allowed(state_);
      return *mask_;
    }
    // A marker is one only where the format has it.
    if (may_call_ && tail_.ends_with(kBeforeMarker)) return {};
    return vocabulary_->text;
  }

  void accept(int32_t token) noexcept override {
    if (reasoning_) {
      reasoning_ = token != vocabulary_->think_end;
    } else if (in_grammar_) {
      state_ = automaton_->step_token(state_, token);
    } else if (token == vocabulary_->dsml) {
      in_grammar_ = true;
    } else {
      tail_ += vocabulary_->tokenizer->token_bytes(token).value_or("");
      if (tail_.size() > kBeforeMarker.size()) tail_.erase(0, tail_.size() - kBeforeMarker.size());
    }
  }

 private:
  const std::shared_ptr<const ConstraintMaker::Vocabulary> vocabulary_;
  const std::shared_ptr<GrammarAutomaton> automaton_;
  std::shared_ptr<const Mask> mask_;  // keeps what allowed() returned
  GrammarAutomaton::State state_ = GrammarAutomaton::kDead;
  std::string tail_;  // of the text, where a tool marker may come
  const bool may_call_;
  bool reasoning_;
  bool in_grammar_;
};

Result<Expr> format_expr(GrammarBuilder& builder, const OutputFormat& format) {
  JsonGrammar json(builder);
  switch (format.kind) {
    case OutputFormat::Kind::kJsonObject:
      return builder.rule(json.any_object());
    case OutputFormat::Kind::kJsonSchema:
      return json.schema(format.schema);
    case OutputFormat::Kind::kRegex:
      return regex_expr(builder, format.regex);
    case OutputFormat::Kind::kChoice: {
      std::vector<Expr> all;
      for (const std::string& text : format.choices) all.push_back(builder.literal(text));
      return builder.choice(all);
    }
    case OutputFormat::Kind::kText:
      break;
  }
  return builder.empty();
}

// Equal for specs whose grammars are equal.
std::string key_of(const ConstraintSpec& spec) {
  std::string key = cat(static_cast<int>(spec.format.kind), spec.must_call, spec.may_not_call,
                        spec.one_call, "\n", spec.format.regex, "\n");
  py::dump_to(key, spec.format.schema);
  for (const std::string& choice : spec.format.choices) py::dump_string_to(key, choice);
  for (const chat::ToolSpec& tool : spec.tools) {
    py::dump_string_to(key, tool.name);
    key += tool.strict ? "!" : "?";
    if (tool.strict) py::dump_to(key, tool.parameters);
  }
  return key;
}

}  // namespace

ConstraintMaker::ConstraintMaker(const Tokenizer& tokenizer, int64_t vocab_size, int32_t eos_token)
    : tokenizer_(tokenizer), vocab_size_(vocab_size), eos_(eos_token) {}
ConstraintMaker::~ConstraintMaker() = default;

Result<std::shared_ptr<GrammarAutomaton>> ConstraintMaker::automaton(const ConstraintSpec& spec) {
  std::string key = key_of(spec);
  for (auto it = kept_.begin(); it != kept_.end(); ++it) {
    if (it->key != key) continue;
    if (it->automaton->states() > kMaxStates) {
      kept_.erase(it);
      break;
    }
    kept_.splice(kept_.begin(), kept_, it);
    return it->automaton;
  }
  GrammarBuilder b;
  std::vector<Expr> answers;
  const bool has_format = spec.format.kind != OutputFormat::Kind::kText;
  if (has_format && !spec.must_call) {
    DSV4_ASSIGN(const Expr text, format_expr(b, spec.format));
    answers.push_back(text);
  }
  if (!spec.tools.empty() && !spec.may_not_call) {
    DSV4_ASSIGN(const Expr calls,
                chat::tool_calls_expr(b, spec.tools, {.dsml_token = vocabulary_->dsml,
                                                      .one_call = spec.one_call}));
    // Behind free text the grammar begins with the marker that opened it.
    answers.push_back(has_format || spec.must_call
                          ? b.sequence({b.literal(kBeforeMarker), b.token(vocabulary_->dsml), calls})
                          : calls);
  }
  DSV4_ASSIGN(Grammar grammar, b.build(b.make_rule(b.choice(answers))));
  auto made = std::make_shared<GrammarAutomaton>(std::move(grammar), vocabulary_->table, eos_);
  if (made->start() == GrammarAutomaton::kDead) {
    return Status(Code::kInvalidArgument, "format: nothing matches it, or too much does at once");
  }
  kept_.push_front({std::move(key), made});
  if (kept_.size() > kKept) kept_.pop_back();
  return made;
}

Result<ConstraintMaker::Factory> ConstraintMaker::make(const ConstraintSpec& spec) {
  const bool has_format = spec.format.kind != OutputFormat::Kind::kText;
  if (!has_format && spec.tools.empty()) return Factory();
  const std::lock_guard lock(mutex_);
  if (!vocabulary_) {
    auto v = std::make_shared<Vocabulary>();
    v->table = std::make_shared<TokenTable>(tokenizer_, vocab_size_);
    v->tokenizer = &tokenizer_;
    v->eos = eos_;
    v->think_end = tokenizer_.token_id(chat::kThinkEnd).value_or(-1);
    v->dsml = tokenizer_.token_id(chat::kDsml).value_or(-1);
    v->text.assign(v->table->words(), ~uint64_t{0});
    const auto forbid = [](Mask& mask, int32_t id) {
      if (id >= 0) mask[static_cast<size_t>(id) / 64] &= ~(uint64_t{1} << (id % 64));
    };
    forbid(v->text, v->dsml);
    v->reasoning = v->text;
    forbid(v->reasoning, v->eos);
    vocabulary_ = std::move(v);
  }
  const bool may_call = !spec.tools.empty() && !spec.may_not_call;
  std::shared_ptr<GrammarAutomaton> grammar;
  if (has_format || may_call) {
    DSV4_ASSIGN(grammar, automaton(spec));
  }
  const bool whole = has_format || spec.must_call;
  return Factory([vocabulary = vocabulary_, grammar, whole, may_call,
                  reasons_first = spec.reasons_first]() -> std::shared_ptr<TokenConstraint> {
    return std::make_shared<AnswerConstraint>(vocabulary, grammar, whole, may_call, reasons_first);
  });
}

}  // namespace dsv4::server
