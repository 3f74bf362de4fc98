// dsv4 logits: what the model says at every position of a token list.
#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "api/backends.h"
#include "api/loaded_model.h"
#include "base/str.h"
#include "checkpoint/writer.h"
#include "command.h"
#include "engine/runner.h"
#include "progress.h"

namespace dsv4::apps {
namespace {

struct Options {
  std::string model, tokens, out, device = "auto", cache_rows = "auto";
  std::optional<int64_t> prefill;
  int64_t chunk = 128;
};

// [ids] or {"tokens": [ids]}.
Result<std::vector<int32_t>> read_tokens(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  if (!file || !(text << file.rdbuf())) {
    return Status(Code::kNotFound, cat(path, ": cannot be read, or is empty"));
  }
  nlohmann::json json = nlohmann::json::parse(text.str(), nullptr, false);
  if (json.is_object() && json.contains("tokens")) json = nlohmann::json(json["tokens"]);
  if (!json.is_array() || json.empty()) {
    return Status(
        Code::kInvalidArgument,
        cat(path, ": expected a JSON list of token ids, or {\"tokens\": [...]}, not empty"));
  }
  std::vector<int32_t> tokens;
  for (const auto& item : json) {
    const int64_t id = item.is_number_integer() ? item.get<int64_t>() : -1;
    if (id < 0 || id > std::numeric_limits<int32_t>::max()) {
      return Status(Code::kInvalidArgument,
                    cat(path, ": item ", tokens.size(), " is ", item.dump().substr(0, 40),
                        ": expected a token id"));
    }
    tokens.push_back(static_cast<int32_t>(id));
  }
  return tokens;
}

Status run(const Options& o) {
  const ProgressSink progress = terminal_progress();
  DSV4_ASSIGN(const std::vector<int32_t> tokens, read_tokens(o.tokens));
  DSV4_ASSIGN(OpenedModel opened, open_model(o.model));
  const ModelConfig config = opened.config;
  const std::ptrdiff_t n = std::ssize(tokens);
  if (const Status s = check_tokens(tokens, config.vocab_size); !s.ok())
    return s.with_context(o.tokens);
  if (n > config.max_position_embeddings) {
    return Status(Code::kInvalidArgument,
                  cat(o.tokens, ": ", n, " tokens, the model's context holds ",
                      config.max_position_embeddings));
  }
  const int64_t prefill = std::min<int64_t>(o.prefill.value_or(n), n);
  const int64_t chunk = std::min<int64_t>(o.chunk, n);

  DSV4_ASSIGN(auto backend, make_backend(o.device, o.cache_rows));
  DSV4_ASSIGN(const LoadedModel loaded,
              load_model(std::move(opened), std::move(backend), progress));
  const Model& model = *loaded.model;
  DSV4_ASSIGN(auto cache, KvCache::make(make_cache_spec(model.config, model.plan),
                                        {.max_sequences = 1, .max_tokens = n, .max_rollback = 0},
                                        *loaded.backend));
  DSV4_ASSIGN(
      auto runner,
      Runner::make(model, *cache,
                   {.max_rows = chunk, .max_sequences = 1, .max_logit_rows = chunk, .context = n},
                   *loaded.backend, loaded.backend->ops()));
  DSV4_ASSIGN(
      SafetensorsWriter writer,
      SafetensorsWriter::create(o.out, {{"logits", DType::kF32, Shape{n, config.vocab_size}}}));
  DSV4_ASSIGN(SequenceCache sequence, cache->open());

  // Logits leave chunk by chunk, so memory does not grow with the list.
  for (int64_t done = 0; done < n;) {
    const int64_t rows = done < prefill ? std::min(chunk, prefill - done) : 1;
    const SequenceRows step = {
        .cache = &sequence,
        .tokens = std::span(tokens).subspan(static_cast<size_t>(done), static_cast<size_t>(rows)),
        .logits = LogitRows::kAll};
    DSV4_ASSIGN(const LogitsView logits, runner->run({&step, 1}));
    DSV4_TRY(sequence.commit(rows));
    DSV4_TRY(writer.append(logits.data,
                           static_cast<size_t>(logits.rows * logits.vocab) * sizeof(float)));
    done += rows;
    if (progress) progress({.stage = "logits", .done = done, .total = n, .unit = "tokens"});
  }
  return writer.finish();
}

}  // namespace

void add_logits(Command app, int& exit_code) {
  auto options = std::make_shared<Options>();
  Command cmd = app.subcommand("logits", "Write the logits at every position of a token list");
  cmd.option("-m,--model", options->model, "Folder of the checkpoint").required();
  cmd.option("--tokens", options->tokens, "JSON: a list of token ids, or {\"tokens\": [...]}")
      .required();
  cmd.option("--out", options->out, "safetensors to write: \"logits\", F32 [tokens, vocabulary]")
      .required();
  cmd.option("--prefill", options->prefill,
             "This many first tokens as prompt, the rest decoded one by one (default: all)")
      .not_negative();
  cmd.option("--chunk", options->chunk, "Prompt tokens per step").range(1, 65536).show_default();
  cmd.option("--device", options->device, "Backend: auto, or a name that `dsv4 version` lists")
      .show_default();
  add_cache_rows(cmd, options->cache_rows);
  cmd.footer(
      "Row i holds the logits for the token at position i + 1.\n\n"
      "  echo '{\"text\": \"Hello\"}' | dsv4 tokenize -m models/demo | sed 's/\"ids\"/\"tokens\"/' "
      "> t.json\n"
      "  dsv4 logits -m models/demo --tokens t.json --out logits.safetensors");
  cmd.run([options, &exit_code] {
    const Status status = run(*options);
    exit_code = status.ok() ? kExitOk : fail(status);
  });
}

}  // namespace dsv4::apps
