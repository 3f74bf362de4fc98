// Whatever is wrong with the input: exit code 1, one line that names it, no crash. The sanitizer
// builds run this too.
#include "cli/checkpoint_fixture.h"

namespace dsv4::cli {
namespace {

using BadConfig = CheckpointTest;
using BadWeights = CheckpointTest;
using BadTokens = CheckpointTest;
using BadOutput = CheckpointTest;

TEST_F(BadConfig, MissingFolderAndFile) {
  expect_failure(logits(dir_ / "nowhere"), {"nowhere"});
  const fs::path model = copy();
  fs::remove(model / "config.json");
  expect_failure(logits(model), {"config.json"});
}

TEST_F(BadConfig, NotJson) {
  const fs::path model = copy();
  for (const char* text : {"", "{", "[]", "null", "{\"vocab_size\": }", "\xff\xfe\x00garbage"}) {
    write_file(model / "config.json", text);
    expect_failure(logits(model), {"config.json"});
  }
}

TEST_F(BadConfig, EveryFieldThatMakesNoSense) {
  const std::vector<std::pair<std::string, Json>> cases = {
      {"model_type", "llama"},
      {"compress_ratios", Json::array({0, 4})},
      {"compress_ratios", Json::array({0, 3, 128, 0})},
      {"compress_ratios", "0,4,128,0"},
      {"hidden_size", 0},
      {"hidden_size", -128},
      {"hidden_size", 1e30},
      {"hidden_size", "large"},
      {"num_hidden_layers", 1000000000},
      {"qk_rope_head_dim", 129},
      {"num_experts_per_tok", 5},
      {"vocab_size", 0},
      {"o_groups", 3},
      {"hc_mult", -4},
      {"rms_norm_eps", "small"},
  };
  for (const auto& item : cases) {
    SCOPED_TRACE(item.first + " = " + item.second.dump());
    const fs::path model = copy();
    edit_config(model, [&](Json& c) { c[item.first] = item.second; });
    expect_failure(logits(model), {"config.json", item.first});
  }
  const fs::path model = copy();
  edit_config(model, [](Json& c) { c.erase("head_dim"); });
  expect_failure(logits(model), {"config.json", "head_dim"});
}

TEST_F(BadWeights, MissingAndTruncated) {
  const fs::path model = copy();
  const fs::path file = model / "model.safetensors";
  const auto size = fs::file_size(file);
  for (const uintmax_t keep :
       {size - 1, size / 2, uintmax_t{100}, uintmax_t{8}, uintmax_t{7}, uintmax_t{0}}) {
    SCOPED_TRACE(keep);
    copy();
    fs::resize_file(file, keep);
    expect_failure(logits(model), {"model.safetensors"});
  }
  fs::remove(file);
  expect_failure(logits(model), {"model"});
}

TEST_F(BadWeights, CorruptHeader) {
  const fs::path model = copy();
  const std::string good_file = read_file(model / "model.safetensors");
  const auto broken = [&](size_t at, const std::string& bytes) {
    std::string file = good_file;
    file.replace(at, bytes.size(), bytes);
    write_file(model / "model.safetensors", file);
    expect_failure(logits(model), {"model.safetensors"});
  };
  broken(0, std::string(8, '\xff'));
  broken(0, std::string("\0\0\0\0\0\0\0\x01", 8));
  broken(0, std::string(8, '\0'));
  broken(8, "]");
  broken(12, std::string(4, '\0'));
}

TEST_F(BadWeights, ATensorIsMissingMisshapenOrOfAnotherType) {
  const std::string norm = "layers.1.attn_norm.weight";
  fs::path model = copy();
  edit_weights(model, [&](Json& h, std::string&) {
    h["another.weight"] = h[norm];
    h.erase(norm);
  });
  expect_failure(logits(model), {norm});

  model = copy();
  edit_weights(model, [&](Json& h, std::string&) { h[norm]["shape"] = Json::array({2, 64}); });
  expect_failure(logits(model), {norm, "[2, 64]", "[128]"});

  model = copy();
  edit_weights(model, [&](Json& h, std::string&) { h[norm]["dtype"] = "F16"; });
  expect_failure(logits(model), {norm, "F16", "BF16"});

  model = copy();
  edit_weights(model, [&](Json& h, std::string&) { h[norm]["dtype"] = "F12"; });
  expect_failure(logits(model), {norm, "F12"});

  model = copy();
  edit_weights(model, [&](Json& h, std::string&) {
    h[norm]["data_offsets"] = Json::array({1e15, 2e15});
  });
  expect_failure(logits(model), {norm});
}

TEST_F(BadWeights, AScaleIsNan) {
  for (const char* name : {"layers.0.attn.wq_a.scale", "layers.2.ffn.experts.3.w2.scale"}) {
    const fs::path model = copy();
    edit_weights(model, [&](Json& h, std::string& data) {
      ASSERT_TRUE(h.contains(name));
      data[h[name]["data_offsets"][0].get<size_t>()] = '\xff';
    });
    expect_failure(logits(model), {name, "NaN"});
  }
}

TEST_F(BadWeights, AShardOfTheIndexIsMissing) {
  const TempDir sharded;
  write_file(sharded / "config.json", small_config().dump());
  const Outcome o = run(
      {"synth", "--config", (sharded / "config.json").string(), "--out", (sharded / "m").string()});
  ASSERT_EQ(o.code, 0) << o.err;
  fs::path victim;
  for (const auto& entry : fs::directory_iterator(sharded / "m")) {
    if (entry.path().extension() == ".safetensors") victim = std::max(victim, entry.path());
  }
  ASSERT_FALSE(victim.empty());
  fs::remove(victim);
  expect_failure(logits(sharded / "m"), {victim.filename().string()});
}

TEST_F(BadTokens, OutOfRangeOrNotAList) {
  expect_failure(logits(good(), "[5, 512]"), {"tokens.json", "512"});
  expect_failure(logits(good(), "[-1]"), {"tokens.json", "-1"});
  expect_failure(logits(good(), "[5, 99999999999]"), {"tokens.json", "99999999999"});
  expect_failure(logits(good(), "[5.5]"), {"tokens.json"});
  expect_failure(logits(good(), "[]"), {"tokens.json"});
  expect_failure(logits(good(), "{"), {"tokens.json"});
}

TEST_F(BadTokens, BrokenTokenizer) {
  const fs::path model = copy();
  for (const char* text :
       {"", "{}", "{\"model\": {\"type\": \"BPE\", \"vocab\": [], \"merges\": []}}", "\xff\xff"}) {
    write_file(model / "tokenizer.json", text);
    expect_failure(run({"tokenize", "-m", model.string()}), {"tokenizer.json"});
    expect_failure(run({"run", "-m", model.string(), "-p", "hi", "-n", "1", "--quiet"}),
                   {"tokenizer.json"});
  }
  fs::remove(model / "tokenizer.json");
  expect_failure(run({"tokenize", "-m", model.string()}), {"tokenizer.json"});
}

// JSON lines: the line that is wrong answers with an error, the others are served.
TEST_F(BadTokens, AWrongLineDoesNotEndTheStream) {
  const Outcome o =
      run({"tokenize", "-m", good().string()},
          {.input = "{\"text\": \"a\"}\nnonsense\n{\"text\": 5}\n{\"text\": \"b\"}\n"});
  EXPECT_EQ(o.code, 1);
  std::vector<Json> lines;
  std::istringstream text(o.out);
  for (std::string line; std::getline(text, line);)
    lines.push_back(Json::parse(line, nullptr, false));
  ASSERT_EQ(lines.size(), 4u) << o.out;
  EXPECT_TRUE(lines[0].contains("ids"));
  EXPECT_TRUE(lines[1].contains("error"));
  EXPECT_TRUE(lines[2].contains("error"));
  EXPECT_TRUE(lines[3].contains("ids"));
}

TEST_F(BadOutput, TheDiskIsFull) {
  const Options small_disk = {.largest_file = 4096};
  expect_failure(logits(good(), "[1, 2, 3, 4, 5, 6, 7, 8]", small_disk), {"logits.safetensors"});
  EXPECT_FALSE(fs::exists(dir_ / "logits.safetensors")) << "half a file was left behind";

  write_file(dir_ / "c.json", small_config().dump());
  expect_failure(
      run({"synth", "--config", (dir_ / "c.json").string(), "--out", (dir_ / "s").string()},
          small_disk),
      {(dir_ / "s").string()});
  EXPECT_FALSE(fs::exists(dir_ / "s" / "config.json"));
  expect_failure(
      run({"quantize", "-m", good().string(), "--to", "nvfp4", "--out", (dir_ / "q").string()},
          small_disk),
      {(dir_ / "q").string()});
  EXPECT_FALSE(fs::exists(dir_ / "q" / "config.json"));
}

TEST_F(BadOutput, StandardOutputIsFull) {
  const Options full = {.input = "{\"text\": \"hello\"}\n", .output_path = "/dev/full"};
  expect_failure(run({"tokenize", "-m", good().string()}, full), {"standard output"});
  expect_failure(run({"inspect", "-m", good().string()}, full), {"standard output"});
  expect_failure(run({"run", "-m", good().string(), "-p", "hi", "-n", "2", "--quiet"}, full),
                 {"standard output"});
}

TEST_F(BadOutput, NothingIsOverwritten) {
  write_file(dir_ / "c.json", small_config().dump());
  const std::string before = read_file(good() / "config.json");
  expect_failure(run({"synth", "--config", (dir_ / "c.json").string(), "--out", good().string()}),
                 {good().string()});
  expect_failure(run({"quantize", "-m", good().string(), "--out", good().string()}),
                 {good().string()});
  EXPECT_EQ(read_file(good() / "config.json"), before);
}

}  // namespace
}  // namespace dsv4::cli
