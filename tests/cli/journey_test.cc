// What users do, from end to end, with a model of random weights.
#include <cmath>

#include "cli/checkpoint_fixture.h"

namespace dsv4::cli {
namespace {

using Journey = CheckpointTest;

std::vector<float> read_logits(const fs::path& path) {
  const std::string file = read_file(path);
  uint64_t length = 0;
  if (file.size() < 8) return {};
  std::memcpy(&length, file.data(), 8);
  std::vector<float> values((file.size() - 8 - length) / sizeof(float));
  std::memcpy(values.data(), file.data() + 8 + length, values.size() * sizeof(float));
  return values;
}

std::string token_list(int n) {
  Json ids = Json::array();
  for (int i = 0; i < n; ++i) ids.push_back((i * 37 + 5) % 256);
  return ids.dump();
}

TEST_F(Journey, TokensGoThereAndBack) {
  const std::string text = "Grüße, 世界 🙂\n  and  spaces";
  const Outcome there =
      run({"tokenize", "-m", good().string()}, {.input = Json{{"text", text}}.dump() + "\n"});
  expect_success(there);
  const Outcome back = run({"tokenize", "-m", good().string(), "--decode"}, {.input = there.out});
  expect_success(back);
  EXPECT_EQ(Json::parse(back.out)["text"], text);
}

TEST_F(Journey, AConversationIsEncodedAndItsAnswerParsed) {
  const Json request = {{"messages", {{{"role", "user"}, {"content", "Hi"}}}},
                        {"thinking_mode", "chat"}};
  const Outcome encoded = run({"encode"}, {.input = request.dump() + "\n"});
  expect_success(encoded);
  const std::string prompt = Json::parse(encoded.out)["text"];
  EXPECT_NE(prompt.find("Hi"), std::string::npos);

  const Json completion = {{"text", "Hello<｜end▁of▁sentence｜>"}, {"thinking_mode", "chat"}};
  const Outcome parsed = run({"parse"}, {.input = completion.dump() + "\n"});
  expect_success(parsed);
  EXPECT_EQ(Json::parse(parsed.out)["content"], "Hello");
}

TEST_F(Journey, LogitsDoNotDependOnChunks) {
  write_file(dir_ / "t.json", token_list(150));
  std::vector<float> first;
  for (const auto& [prefill, chunk] :
       std::vector<std::pair<int, int>>{{150, 150}, {150, 7}, {140, 64}, {1, 1}}) {
    const fs::path out = dir_ / ("logits" + std::to_string(chunk));
    expect_success(run({"logits", "-m", good().string(), "--tokens", (dir_ / "t.json").string(),
                        "--out", out.string(), "--prefill", std::to_string(prefill), "--chunk",
                        std::to_string(chunk), "--device", "reference"}));
    const std::vector<float> values = read_logits(out);
    ASSERT_EQ(values.size(), 150u * 512u);
    for (float v : values) ASSERT_TRUE(std::isfinite(v));
    if (first.empty()) first = values;
    ASSERT_EQ(std::memcmp(first.data(), values.data(), values.size() * sizeof(float)), 0)
        << "prefill " << prefill << ", chunk " << chunk;
  }
}

TEST_F(Journey, TheLosslessCastToNvfp4GivesTheSameLogits) {
  const fs::path cast = dir_ / "nvfp4";
  const Outcome o =
      run({"quantize", "-m", good().string(), "--to", "nvfp4", "--out", cast.string(), "--json"});
  expect_success(o);
  EXPECT_EQ(Json::parse(o.out)["rounded_blocks"], 0);
  write_file(dir_ / "t.json", token_list(40));
  for (const fs::path& model : {good(), cast}) {
    expect_success(
        run({"logits", "-m", model.string(), "--tokens", (dir_ / "t.json").string(), "--out",
             (dir_ / (model.filename().string() + ".out")).string(), "--device", "reference"}));
  }
  EXPECT_EQ(read_file(dir_ / "good.out"), read_file(dir_ / "nvfp4.out"));
}

TEST_F(Journey, TheSameSeedGivesTheSameCheckpoint) {
  write_file(dir_ / "c.json", small_config().dump());
  for (const char* name : {"a", "b"}) {
    expect_success(run({"synth", "--config", (dir_ / "c.json").string(), "--single", "--seed", "1",
                        "--out", (dir_ / name).string()}));
  }
  EXPECT_EQ(read_file(dir_ / "a" / "model.safetensors"),
            read_file(dir_ / "b" / "model.safetensors"));
}

TEST_F(Journey, InspectCountsWhatIsThere) {
  const Outcome o = run({"inspect", "-m", good().string()});
  expect_success(o);
  EXPECT_NE(o.out, "");
  for (const char* flag : {"--tensors", "--plan", "--ops"}) {
    const Outcome more = run({"inspect", "-m", good().string(), flag});
    expect_success(more);
    EXPECT_NE(more.out, "") << flag;
  }
  EXPECT_NE(run({"inspect", "-m", good().string(), "--tensors"})
                .out.find("layers.1.attn.indexer.wq_b.weight"),
            std::string::npos);
}

TEST_F(Journey, RunAnswersAndTheSeedDecides) {
  const std::vector<std::string> args = {"run", "-m", good().string(), "-p", "Hello",
                                         "-n",  "8",  "--seed",        "7",  "--json"};
  const Outcome a = run(args), b = run(args);
  EXPECT_EQ(a.code, 0) << a.err;
  const Json first = Json::parse(a.out, nullptr, false),
             second = Json::parse(b.out, nullptr, false);
  ASSERT_TRUE(first.is_object()) << a.out;
  EXPECT_EQ(first.at("tokens"), second.at("tokens")) << a.out;
}

TEST_F(Journey, RunReadsItsPromptFromAFileOrStandardInput) {
  write_file(dir_ / "prompt.txt", "Hello");
  const std::vector<std::string> tail = {"-n", "4", "--temperature", "0", "--raw"};
  std::vector<std::string> outputs;
  for (std::vector<std::string> args :
       {std::vector<std::string>{"run", "-m", good().string(), "-p", "Hello"},
        std::vector<std::string>{"run", "-m", good().string(), "-f",
                                 (dir_ / "prompt.txt").string()},
        std::vector<std::string>{"run", "-m", good().string(), "-"}}) {
    args.insert(args.end(), tail.begin(), tail.end());
    const Outcome o = run(args, {.input = "Hello"});
    EXPECT_EQ(o.code, 0) << o.err;
    outputs.push_back(o.out);
  }
  EXPECT_EQ(outputs[0], outputs[1]);
  EXPECT_EQ(outputs[0], outputs[2]);
}

}  // namespace
}  // namespace dsv4::cli
