// POST /v1/completions: OpenAI's older endpoint, which goes on a text as it is.
#include <ctime>

#include "base/str.h"
#include "server/answers.h"
#include "server/conversation.h"
#include "server/endpoints/endpoints.h"
#include "server/ids.h"
#include "server/openai_json.h"
#include "server/output_format.h"
#include "server/request_body.h"
#include "server/sse.h"

namespace dsv4::server {
namespace {

using py::Value;

struct CompletionRequest {
  std::vector<std::vector<int32_t>> prompts;
  SamplingParams sampling;
  std::vector<std::string> stops;
  ConstraintMaker::Factory constraint;
  int64_t max_tokens = 16;  // OpenAI's default
  int64_t n = 1;
  bool stream = false, include_usage = false, echo = false, logprobs = false, ignore_eos = false;
};

std::vector<int32_t> read_ids(const App& app, const Fields& body, const Value::Array& items) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < items.size(); ++i) {
    const auto id = as_int64(items[i]);
    if (!id || *id < 0 || *id >= app.engine.info().vocab_size) {
      body.report("prompt", cat("expected token ids below ", app.engine.info().vocab_size));
      return {};
    }
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

std::vector<int32_t> read_prompt(App& app, const Fields& body, const Value& prompt) {
  if (const std::string* text = prompt.if_string()) {
    auto ids = app.tokenizer.encode(*text);
    if (ids.ok()) return std::move(ids).value();
    body.report("prompt", ids.status().message());
  } else if (const Value::Array* items = prompt.if_array()) {
    return read_ids(app, body, *items);
  } else {
    body.report("prompt", cat("expected text or token ids, found ", prompt.type_name()));
  }
  return {};
}

// A text, a list of texts, a list of ids, or a list of lists of ids.
void read_prompts(App& app, const Fields& body, CompletionRequest& r) {
  const Value* const prompt = body.get("prompt");
  if (!prompt) return body.report("prompt", "expected text or token ids");
  const Value::Array* const items = prompt->if_array();
  if (!items || (!items->empty() && items->front().if_int())) {
    r.prompts.push_back(read_prompt(app, body, *prompt));
  } else {
    if (std::ssize(*items) > app.options.max_choices) {
      return body.report("prompt", cat("expected at most ", app.options.max_choices, " prompts"));
    }
    for (const Value& item : *items) r.prompts.push_back(read_prompt(app, body, item));
  }
  const int64_t context = app.engine.info().context;
  for (std::vector<int32_t>& ids : r.prompts) {
    // Without a token there is nothing to go on from.
    if (ids.empty()) ids.push_back(app.engine.info().bos_token);
    if (std::ssize(ids) < context) continue;
    body.problem().report("prompt",
                          cat("prompt: has ", ids.size(), " tokens, the context of this server holds ",
                              context),
                          "context_length_exceeded");
  }
  if (r.prompts.empty()) body.report("prompt", "expected at least one prompt");
}

CompletionRequest read_request(App& app, const Fields& body) {
  CompletionRequest r;
  check_model(app, body);
  read_prompts(app, body, r);
  r.sampling = read_sampling(app, body);
  const auto constraint = app.constraints.make({.format = read_output_format(body)});
  if (constraint.ok()) {
    r.constraint = *constraint;
  } else {
    body.report("structured_outputs", constraint.status().message());
  }
  r.stops = body.strings("stop", 16);
  r.ignore_eos = body.boolean("ignore_eos").value_or(false);
  r.echo = body.boolean("echo").value_or(false);
  r.max_tokens = body.integer("max_tokens", r.echo ? 0 : 1, int64_t{1} << 40).value_or(16);
  r.n = body.integer("n", 1, app.options.max_choices).value_or(1);
  if (const auto best = body.integer("best_of", 1, app.options.max_choices); best && *best != r.n) {
    body.report("best_of", "is not supported beyond n");
  }
  if (body.string("suffix").value_or("") != "") body.report("suffix", "is not supported");
  r.stream = body.boolean("stream").value_or(false);
  if (const Value* const options = body.object("stream_options")) {
    r.include_usage =
        Fields(*options, "stream_options", body.problem()).boolean("include_usage").value_or(false);
  }
  if (const auto logprobs = body.integer("logprobs", 0, 20)) {
    r.logprobs = true;
    r.sampling.logprobs = static_cast<int32_t>(*logprobs);
  }
  if (r.n * std::ssize(r.prompts) > app.options.max_choices) {
    body.report("n", cat("expected at most ", app.options.max_choices, " answers in all"));
  }
  return r;
}

class CompletionWriter final : public AnswerWriter {
 public:
  CompletionWriter(App& app, std::shared_ptr<Exchange> exchange, CompletionRequest request)
      : AnswerWriter(std::move(exchange), request.stream),
        app_(app),
        request_(std::move(request)),
        choices_(request_.prompts.size() * static_cast<size_t>(request_.n)) {
    for (size_t i = 0; request_.echo && i < choices_.size(); ++i) {
      choices_[i].echoed = app_.tokenizer.decode(prompt_of(i)).ok()
                               ? *app_.tokenizer.decode(prompt_of(i))
                               : std::string();
    }
  }

  void begin() {
    if (!stream_) return;
    exchange_->begin_stream(sse_head());
    for (size_t i = 0; request_.echo && i < choices_.size(); ++i) {
      if (!request_.logprobs) chunk(choice_json(i, choices_[i].echoed, {}, nullptr));
    }
  }

  void on_delta(size_t index, const Delta& delta) override {
    if (!stream_) return;
    std::string text;
    for (const chat::StreamEvent& event : delta.events) text += event.text;
    std::vector<TokenInfo> tokens = take_prompt(index, delta.prompt_tokens);
    if (!tokens.empty()) text = choices_[index].echoed + text;
    tokens.insert(tokens.end(), delta.tokens.begin(), delta.tokens.end());
    chunk(choice_json(index, text, tokens, nullptr));
  }

  void on_outcome(size_t index, const Outcome& o) override {
    if (index % static_cast<size_t>(request_.n) == 0) usage_.add_prompt(o);
    usage_.add_completion(o);
    if (stream_) return chunk(choice_json(index, "", {}, &o));
    std::vector<TokenInfo> tokens = take_prompt(index, o.prompt_logprobs);
    tokens.insert(tokens.end(), o.tokens.begin(), o.tokens.end());
    choices_[index].value = choice_json(index, choices_[index].echoed + o.message.content, tokens, &o);
  }

  void on_complete() override {
    if (!stream_) {
      Value::Array choices;
      for (Choice& choice : choices_) choices.push_back(std::move(choice.value));
      Value answer = envelope(std::move(choices));
      answer.set("usage", usage_json(usage_));
      return exchange_->respond({.body = py::dumps(answer)});
    }
    if (request_.include_usage) {
      Value last = envelope({});
      last.set("usage", usage_json(usage_));
      exchange_->write(sse_data(py::dumps(last)));
    }
    exchange_->write(sse_data("[DONE]"));
    exchange_->end_stream();
  }

  void on_error(const ApiError& error) override {
    if (!stream_) return exchange_->respond(error_response(Dialect::kOpenAi, error));
    exchange_->write(sse_data(error_json(Dialect::kOpenAi, error)));
    exchange_->end_stream();
  }

 private:
  struct Choice {
    std::string echoed;
    size_t offset = 0;  // in characters of the text that was sent, for text_offset
    Value value;
  };

  const std::vector<int32_t>& prompt_of(size_t index) const {
    return request_.prompts[index / static_cast<size_t>(request_.n)];
  }
  std::vector<TokenInfo> take_prompt(size_t, const std::vector<TokenInfo>& tokens) const {
    return request_.echo ? tokens : std::vector<TokenInfo>();
  }

  Value envelope(Value::Array choices) const {
    return Value::object({{"id", Value(id_)},
                          {"object", "text_completion"},
                          {"created", json_int(created_)},
                          {"model", Value(app_.options.model_name)},
                          {"choices", Value(std::move(choices))}});
  }
  void chunk(Value choice) {
    Value out = envelope({std::move(choice)});
    if (request_.include_usage) out.set("usage", Value());
    exchange_->write(sse_data(py::dumps(out)));
  }

  Value choice_json(size_t index, std::string_view text, const std::vector<TokenInfo>& tokens,
                    const Outcome* outcome) {
    return Value::object({{"index", json_int(static_cast<int64_t>(index))},
                          {"text", Value(text)},
                          {"logprobs", request_.logprobs ? logprobs(index, tokens) : Value()},
                          {"finish_reason", outcome ? Value(finish_reason(*outcome)) : Value()}});
  }

  Value logprobs(size_t index, const std::vector<TokenInfo>& tokens) {
    Value::Array texts, values, tops, offsets;
    for (const TokenInfo& info : tokens) {
      const std::string text = token_text(app_.tokenizer, info.token);
      texts.emplace_back(text);
      // The first token of a prompt has none.
      values.push_back(info.logprob ? Value(finite_logprob(*info.logprob)) : Value());
      Value top(Value::Object{});
      for (const TokenLogprob& t : info.top) {
        top.set(token_text(app_.tokenizer, t.token), Value(finite_logprob(t.logprob)));
      }
      tops.push_back(info.logprob ? std::move(top) : Value());
      size_t& offset = choices_[index].offset;
      offsets.push_back(json_int(static_cast<int64_t>(offset)));
      for (const char c : text) offset += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    }
    return Value::object({{"tokens", Value(std::move(texts))},
                          {"token_logprobs", Value(std::move(values))},
                          {"top_logprobs", Value(std::move(tops))},
                          {"text_offset", Value(std::move(offsets))}});
  }

  App& app_;
  const CompletionRequest request_;
  const std::string id_ = random_id("cmpl-");
  const std::time_t created_ = std::time(nullptr);
  std::vector<Choice> choices_;
  UsageSum usage_;
};

}  // namespace

void completions(App& app, const std::shared_ptr<Exchange>& exchange) {
  const auto body = read_body(exchange);
  if (!body) return;
  Problem problem;
  CompletionRequest request = read_request(app, Fields(*body, "", problem));
  if (problem.any()) return exchange->respond(error_response(Dialect::kOpenAi, problem.error()));
  std::vector<GenerationSpec> specs;
  for (const std::vector<int32_t>& prompt : request.prompts) {
    GenerationSpec spec;
    spec.request.prompt = prompt;
    spec.request.sampling = request.sampling;
    spec.request.max_tokens = request.max_tokens;
    if (request.echo && request.logprobs) {
      spec.request.prompt_logprobs = request.sampling.logprobs;
    } else if (request.max_tokens == 0) {
      spec.request.prompt_logprobs = 0;  // the engine runs no request without a result
    }
    spec.request.ignore_eos = request.ignore_eos;
    spec.stops = request.stops;
    spec.constraint = request.constraint;
    for (GenerationSpec& one : repeat(std::move(spec), request.n)) specs.push_back(std::move(one));
  }
  const auto writer = std::make_shared<CompletionWriter>(app, exchange, std::move(request));
  const auto error = start_answers(app, exchange, std::move(specs), writer);
  if (error) return exchange->respond(error_response(Dialect::kOpenAi, *error));
  writer->begin();
}

}  // namespace dsv4::server
