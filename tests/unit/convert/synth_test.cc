// Synthetic checkpoints: the published layout, the same bytes from the same seed, usable values.
#include "convert/synth.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/str.h"
#include "checkpoint/checkpoint.h"
#include "convert/byte_tokenizer.h"
#include "convert/inventory.h"
#include "formats/weight_format.h"
#include "model/tensor_table.h"
#include "small.h"
#include "unit/checkpoint/temp_dir.h"

namespace dsv4 {
namespace {

void synthesize(const ModelConfig& config, const std::string& dir, const SynthOptions& options = {}) {
  const Status status = write_synthetic(config, options, dir);
  ASSERT_TRUE(status.ok()) << status.message();
}

Checkpoint opened(const std::string& dir, bool headers = false) {
  SafetensorsOptions options;
  options.allow_header_only = headers;
  auto checkpoint = Checkpoint::open(dir, options);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  return std::move(checkpoint).value();
}

TEST(Synth, WhatTheConfigImplies) {
  TempDir dir;
  const ModelConfig config = small_config();
  synthesize(config, dir.file("m"));
  const Checkpoint checkpoint = opened(dir.file("m"));
  EXPECT_EQ(checkpoint.shard_count(), 4u + 3);  // embed, layers, head, MTP
  EXPECT_EQ(checkpoint.find("layers.3.attn.wkv.weight")->shard, 4u);

  const auto read = load_config(dir.file("m"));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(to_json(*read), to_json(config));
  EXPECT_EQ(read->compress_ratios, (std::vector<int64_t>{0, 0, 4, 128, 0}));
  const ModelPlan plan = make_plan(*read);
  const Inventory inventory = take_inventory(checkpoint, *read, plan);
  EXPECT_TRUE(inventory.complete());
  EXPECT_TRUE(inventory.unexpected.empty());
  EXPECT_EQ(inventory.without_data, 0);
  const TensorTable table(*read, plan);
  for (const TensorInfo& info : table.rows()) {
    const auto source = find_weight(checkpoint, info);
    EXPECT_TRUE(source.ok()) << source.status().message();
  }
}

TEST(Synth, SameSeedSameBytesWhateverTheThreads) {
  TempDir dir;
  const ModelConfig config = small_config();
  SynthOptions one, three, other;
  one.single_file = three.single_file = other.single_file = true;
  one.threads = 1;
  three.threads = 3;
  other.seed = 2;
  synthesize(config, dir.file("a"), one);
  synthesize(config, dir.file("b"), three);
  synthesize(config, dir.file("c"), other);
  const std::string a = get_file(dir.file("a/model.safetensors"));
  EXPECT_EQ(a, get_file(dir.file("b/model.safetensors")));
  EXPECT_NE(a, get_file(dir.file("c/model.safetensors")));

  // A tensor does not depend on the split into shards either.
  synthesize(config, dir.file("d"));
  const Checkpoint single = opened(dir.file("a")), shards = opened(dir.file("d"));
  for (const TensorEntry& entry : single.entries()) {
    const TensorRef x = *single.view(entry), y = *shards.view(*shards.find(entry.name));
    ASSERT_EQ(memcmp(x.data, y.data, x.bytes()), 0) << entry.name;
  }
}

TEST(Synth, LinearWeightsHaveDeviationOneOverRootK) {
  TempDir dir;
  const ModelConfig config = small_config();
  synthesize(config, dir.file("m"));
  const Checkpoint checkpoint = opened(dir.file("m"));
  const TensorTable table(config, make_plan(config));
  for (const char* name : {"layers.0.attn.wq_b.weight", "layers.2.attn.compressor.wkv.weight",
                           "layers.1.ffn.experts.3.w2.weight", "mtp.0.e_proj.weight"}) {
    const TensorInfo& info = *table.find(name);
    const WeightSource source = *find_weight(checkpoint, info);
    double sum = 0, squares = 0;
    std::vector<float> row(static_cast<size_t>(info.cols()));
    for (int64_t r = 0; r < info.rows(); ++r) {
      dequantise_row(source.format, source.weight.data, source.scale.data, source.global_scale,
                     info.rows(), info.cols(), r, row.data());
      for (const float x : row) {
        sum += static_cast<double>(x);
        squares += static_cast<double>(x) * static_cast<double>(x);
      }
    }
    const double n = static_cast<double>(info.shape.elements());
    const double deviation = std::sqrt(squares / n) * std::sqrt(static_cast<double>(info.cols()));
    // Scales are powers of two drawn from three; few tiles, so their mean varies.
    EXPECT_GT(deviation, 0.5) << name;
    EXPECT_LT(deviation, 1.7) << name;
    EXPECT_LT(std::abs(sum / n), 0.1 / std::sqrt(static_cast<double>(info.cols()))) << name;
  }
}

TEST(Synth, ExpertIdsAreDistinctAndValid) {
  TempDir dir;
  const ModelConfig config = small_config();
  synthesize(config, dir.file("m"));
  const Checkpoint checkpoint = opened(dir.file("m"));
  const Shape shape{config.vocab_size, config.num_experts_per_tok};
  const TensorRef ids = *checkpoint.tensor("layers.2.ffn.gate.tid2eid", DType::kI64, shape);
  std::set<int64_t> seen;
  for (int64_t token = 0; token < config.vocab_size; ++token) {
    std::set<int64_t> row;
    for (int64_t j = 0; j < config.num_experts_per_tok; ++j) {
      int64_t id;
      memcpy(&id, static_cast<const char*>(ids.data) + (token * config.num_experts_per_tok + j) * 8, 8);
      ASSERT_TRUE(id >= 0 && id < config.n_routed_experts) << id;
      row.insert(id);
    }
    ASSERT_EQ(row.size(), static_cast<size_t>(config.num_experts_per_tok)) << token;
    seen.insert(row.begin(), row.end());
  }
  EXPECT_EQ(seen.size(), static_cast<size_t>(config.n_routed_experts));
}

TEST(Synth, HeadersOfTheRealModels) {
  TempDir dir;
  SynthOptions options;
  options.header_only = true;
  const ModelConfig flash = *builtin_config("flash");
  synthesize(flash, dir.file("m"), options);
  const Checkpoint checkpoint = opened(dir.file("m"), true);
  const Inventory inventory = take_inventory(checkpoint, flash, make_plan(flash));
  EXPECT_EQ(inventory.payload_bytes, 159'609'485'896u);
  EXPECT_EQ(inventory.tensors, 69'187);
  EXPECT_EQ(inventory.without_data, 69'187);
  EXPECT_EQ(checkpoint.shard_count(), 46u);
  EXPECT_TRUE(inventory.complete());
  EXPECT_FALSE(Checkpoint::open(dir.file("m")).ok());
}

TEST(Synth, InventorySeesWhatIsWrong) {
  TempDir dir;
  const ModelConfig config = small_config();
  synthesize(config, dir.file("m"));
  const Checkpoint checkpoint = opened(dir.file("m"));
  ModelConfig other = config;
  other.n_routed_experts = 9;
  other.q_lora_rank = 256;
  other.num_hash_layers = 2;
  const Inventory inventory = take_inventory(checkpoint, other, make_plan(other));
  EXPECT_FALSE(inventory.complete());
  EXPECT_EQ(inventory.missing.size(), 5u * 3 * 2 + 1);  // an expert per block, gate.bias of layer 2
  ASSERT_EQ(inventory.unexpected.size(), 1u);
  EXPECT_EQ(inventory.unexpected[0], "layers.2.ffn.gate.tid2eid");
  EXPECT_NE(inventory.mismatched.size(), 0u);
}

TEST(Synth, RefusesWhatCannotWork) {
  TempDir dir;
  const ModelConfig config = small_config();
  EXPECT_FALSE(cut_config(config, {.layers = 5}).ok());
  EXPECT_FALSE(cut_config(config, {.experts = -1}).ok());
  EXPECT_FALSE(cut_config(config, {.vocab = 1}).ok());
  const ModelConfig tiny = *cut_config(config, {.vocab = 300});
  const Status status = write_synthetic(tiny, {}, dir.file("m"));
  EXPECT_NE(status.message().find("vocab_size: expected at least 306"), std::string::npos)
      << status.message();
  SynthOptions options;
  options.tokenizer_path = dir.file("none.json");
  EXPECT_EQ(write_synthetic(config, options, dir.file("m")).code(), Code::kNotFound);

  synthesize(config, dir.file("m"));
  EXPECT_FALSE(write_synthetic(config, {}, dir.file("m")).ok());  // there is one already
  EXPECT_TRUE(Checkpoint::open(dir.file("m")).ok());              // and it is still there
}

TEST(ByteTokenizer, IdsFillTheVocabulary) {
  for (const int64_t vocab : {min_tokenizer_vocab(), int64_t{512}, int64_t{4096}, int64_t{129280}}) {
    const auto text = byte_tokenizer_json(vocab);
    ASSERT_TRUE(text.ok());
    const auto json = nlohmann::json::parse(*text);
    std::set<int64_t> ids;
    for (const auto& [word, id] : json["model"]["vocab"].items()) ids.insert(id.get<int64_t>());
    const size_t words = ids.size();
    EXPECT_EQ(words, json["model"]["vocab"].size());
    EXPECT_EQ(words, 259 + json["model"]["merges"].size());
    for (const auto& token : json["added_tokens"]) {
      ids.insert(token["id"].get<int64_t>());
      if (token["content"] == "<｜User｜>" && vocab == 129280) {
        EXPECT_EQ(token["id"], 128803);
      }
    }
    EXPECT_EQ(ids.size(), static_cast<size_t>(vocab));
    EXPECT_EQ(*ids.rbegin(), vocab - 1);
  }
}

TEST(ByteTokenizer, SamePreTokenizerAsPublished) {
  const std::string path = "../shared/tokenizer/tokenizer.json";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not here";
  const auto published = nlohmann::json::parse(get_file(path));
  const auto ours = nlohmann::json::parse(*byte_tokenizer_json(129280));
  for (const char* key : {"normalizer", "pre_tokenizer", "post_processor", "decoder"}) {
    EXPECT_EQ(ours[key], published[key]) << key;
  }
  std::map<int64_t, std::pair<std::string, bool>> names;
  for (const auto& t : published["added_tokens"]) names[t["id"]] = {t["content"], t["special"]};
  for (const auto& t : ours["added_tokens"]) {
    const int64_t id = t["id"];
    if (id >= 128847) continue;
    EXPECT_EQ(names.at(id), std::pair(t["content"].get<std::string>(), t["special"].get<bool>()));
  }
  for (const auto& [word, id] : ours["model"]["vocab"].items()) {
    if (id >= 259) continue;
    EXPECT_EQ(published["model"]["vocab"][word], id) << word;
  }
}

}  // namespace
}  // namespace dsv4
