// Help that teaches, and wrong usage that is told apart from failure.
#include "cli/program.h"

namespace dsv4::cli {
namespace {

struct Command {
  const char* name;
  std::vector<const char*> options;  // what README and scripts rely on
};

const std::vector<Command> kCommands = {
    {"run",
     {"-m", "-p", "-f", "-n", "--temperature", "--top-k", "--top-p", "--min-p", "--seed",
      "--thinking", "--raw", "--device", "--cache-rows", "--json"}},
    {"chat", {"-m", "--thinking", "--device"}},
    {"inspect", {"-m", "--tensors", "--plan", "--ops"}},
    {"logits", {"-m", "--tokens", "--out", "--prefill", "--chunk"}},
    {"verify", {"-m", "--golden", "--json"}},
    {"tokenize", {"--tokenizer", "--decode"}},
    {"encode", {}},
    {"parse", {}},
    {"synth", {"--config", "--layers", "--experts", "--out"}},
    {"quantize", {"-m", "--to", "--out"}},
    {"version", {}},
};

TEST(Usage, HelpListsEveryCommand) {
  const Outcome o = run({"--help"});
  expect_success(o);
  for (const Command& c : kCommands)
    EXPECT_NE(o.out.find(std::string("  ") + c.name), std::string::npos) << c.name;
}

TEST(Usage, HelpOfACommandNamesItsOptionsAndShowsAnExample) {
  for (const Command& c : kCommands) {
    const Outcome o = run({c.name, "--help"});
    expect_success(o);
    for (const char* option : c.options)
      EXPECT_NE(o.out.find(option), std::string::npos) << c.name << " " << option;
    const size_t usage = o.out.find("Usage:");
    if (c.name != std::string("version")) {
      EXPECT_NE(o.out.find(std::string("dsv4 ") + c.name, usage + 1), std::string::npos)
          << c.name << ": no example";
    }
  }
}

TEST(Usage, WrongUsageIsExitCodeTwo) {
  const std::vector<std::vector<std::string>> wrong = {{},          {"fly"},
                                                       {"--fly"},   {"run"},
                                                       {"inspect"}, {"logits", "-m", "x"},
                                                       {"synth"},   {"quantize", "-m", "x"}};
  for (const auto& args : wrong) {
    const Outcome o = run(args);
    EXPECT_EQ(o.code, 2) << (args.empty() ? "no command" : args[0]);
    EXPECT_EQ(o.out, "");
    EXPECT_NE(o.err, "");
  }
  for (const Command& c : kCommands) EXPECT_EQ(run({c.name, "--no-such-option"}).code, 2) << c.name;
}

TEST(Usage, ValuesOutOfRangeAreWrongUsage) {
  EXPECT_EQ(run({"logits", "-m", "x", "--tokens", "t", "--out", "o", "--chunk", "0"}).code, 2);
  EXPECT_EQ(run({"logits", "-m", "x", "--tokens", "t", "--out", "o", "--prefill", "many"}).code, 2);
  EXPECT_EQ(run({"quantize", "-m", "x", "--to", "int3", "--out", "o"}).code, 2);
  EXPECT_EQ(run({"run", "-m", "x", "-p", "hi", "--thinking", "sometimes"}).code, 2);
  EXPECT_EQ(run({"run", "-m", "x", "-p", "hi", "-n", "-3"}).code, 2);
}

TEST(Usage, VersionSaysWhatWasBuilt) {
  const Outcome o = run({"version"});
  expect_success(o);
  EXPECT_EQ(o.out.rfind("dsv4 ", 0), 0u) << o.out;
  EXPECT_NE(o.out.find("reference"), std::string::npos) << o.out;
}

}  // namespace
}  // namespace dsv4::cli
