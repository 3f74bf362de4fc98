// `dsv4 eval` and conversations of `dsv4 run`, with the model that ships.
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace dsv4::cli {
namespace {

using Json = nlohmann::json;

const fs::path kModel = DSV4_DEMO_MODEL;

Outcome eval(std::vector<std::string> args) {
  args.insert(args.begin(), {"eval", "-m", kModel.string()});
  return run(args);
}

TEST(Eval, TheTableNamesEachSetAndItsFigures) {
  const Outcome o = eval({"--tasks", "copy,story", "--limit", "1"});
  EXPECT_EQ(o.code, 0) << o.err;
  for (const char* word : {"copy", "accuracy", "story", "perplexity", "mtp_acceptance"}) {
    EXPECT_NE(o.out.find(word), std::string::npos) << word << " is not in:\n" << o.out;
  }
  EXPECT_EQ(o.out.find("sums"), std::string::npos) << o.out;
}

TEST(Eval, JsonHoldsTheSameFiguresAndNothingElseIsOnStandardOutput) {
  const Outcome o = eval({"--tasks", "reverse,tools", "--limit", "2", "--json"});
  EXPECT_EQ(o.code, 0) << o.err;
  const Json report = Json::parse(o.out, nullptr, false);
  ASSERT_TRUE(report.is_object()) << o.out;
  EXPECT_TRUE(report.at("backend").is_string());
  ASSERT_EQ(report.at("tasks").size(), 2u);
  const Json &tools = report["tasks"][0], &reverse = report["tasks"][1];
  EXPECT_EQ(reverse.at("task"), "reverse");
  EXPECT_EQ(reverse.at("items"), 2);
  EXPECT_EQ(reverse.at("figures").at("accuracy"), 1.0);
  EXPECT_GT(reverse.at("completion_tokens"), 2);
  EXPECT_EQ(reverse.at("misses").size(), 0u);
  EXPECT_EQ(tools.at("task"), "tools");
  for (const char* figure : {"parsed", "arguments", "answer"}) {
    EXPECT_EQ(tools.at("figures").at(figure), 1.0) << figure;
  }
}

// A wrong answer is not a failure of the program; a bound that does not hold is.
TEST(Eval, MissesAreShownAndOnlyRequireChangesTheExitCode) {
  const TempDir sets;
  write_file(sets / "copy.jsonl",
             R"({"id": "copy/x", "task": "copy", "metric": "exact", "thinking": false, )"
             R"("messages": [{"role": "user", "content": "Copy this list: pearl, apple"}], )"
             R"("expected": "something else"})"
             "\n");
  const Outcome shown = eval({"--data", sets.path().string(), "--misses"});
  EXPECT_EQ(shown.code, 0) << shown.err;
  EXPECT_NE(shown.out.find("copy/x"), std::string::npos) << shown.out;
  EXPECT_NE(shown.out.find("something else"), std::string::npos) << shown.out;
  EXPECT_NE(shown.out.find("pearl, apple"), std::string::npos) << shown.out;
  const Outcome required =
      eval({"--data", sets.path().string(), "--require", "copy.accuracy>=0.5"});
  EXPECT_EQ(required.code, 1);
  EXPECT_NE(required.err.find("copy.accuracy"), std::string::npos) << required.err;
}

TEST(Eval, WrongArgumentsAndMissingFilesAreNamed) {
  EXPECT_EQ(eval({"--suite", "exam"}).code, 2);
  EXPECT_EQ(eval({"--limit", "0"}).code, 2);
  expect_failure(eval({"--tasks", "copy,juggle"}), {"juggle"});
  expect_failure(eval({"--require", "copy.accuracy~1"}), {"--require", "copy.accuracy~1"});
  expect_failure(run({"eval", "-m", "/no/such/folder"}), {"/no/such/folder"});
  const TempDir sets;
  expect_failure(eval({"--data", sets.path().string()}), {sets.path().string()});
  write_file(sets / "copy.jsonl", "{\"id\": 1}\n");
  expect_failure(eval({"--data", sets.path().string()}), {"copy.jsonl", "1"});
}

Outcome run_messages(const fs::path& file, std::vector<std::string> more = {}) {
  more.insert(more.begin(), {"run", "-m", kModel.string(), "--messages", file.string(),
                             "--temperature", "0", "-q"});
  return run(more);
}

TEST(RunMessages, AToolIsCalledAndItsResultUsed) {
  const Outcome call = run_messages(kModel / "examples" / "tool_call.json", {"--json"});
  EXPECT_EQ(call.code, 0) << call.err;
  const Json first = Json::parse(call.out, nullptr, false);
  ASSERT_TRUE(first.is_object()) << call.out;
  ASSERT_EQ(first.at("tool_calls").size(), 1u) << call.out;
  EXPECT_EQ(first["tool_calls"][0].at("name"), "get_weather");
  EXPECT_EQ(Json::parse(first["tool_calls"][0].at("arguments").get<std::string>()),
            Json({{"city", "Oslo"}}));
  EXPECT_EQ(first.at("content"), "");

  const Outcome answer = run_messages(kModel / "examples" / "tool_answer.json");
  EXPECT_EQ(answer.code, 0) << answer.err;
  EXPECT_NE(answer.out.find("snowy"), std::string::npos) << answer.out;
  EXPECT_NE(answer.out.find('4'), std::string::npos) << answer.out;
}

// A bare list is a conversation too, and gives what the same prompt gives as -p.
TEST(RunMessages, AListOfMessagesIsTheWholeFile) {
  const TempDir dir;
  const std::string words = "Copy this list: pearl, apple, grape";
  write_file(dir / "m.json", Json::array({{{"role", "user"}, {"content", words}}}).dump());
  const Outcome listed = run_messages(dir / "m.json");
  EXPECT_EQ(listed.code, 0) << listed.err;
  EXPECT_EQ(listed.out, "pearl, apple, grape\n");
  EXPECT_EQ(run({"run", "-m", kModel.string(), "-p", words, "--temperature", "0", "-q"}).out,
            listed.out);
}

TEST(RunMessages, WhatIsNoConversationIsNamedWithItsFile) {
  const TempDir dir;
  const fs::path file = dir / "m.json";
  expect_failure(run_messages(file), {file.string()});
  for (const char* text :
       {"", "{", "3", "[]", "{\"messages\": []}", "{\"tools\": []}", "[3]",
        "[{\"content\": \"Hi\"}]", "[{\"role\": \"king\", \"content\": \"Hi\"}]"}) {
    write_file(file, text);
    SCOPED_TRACE(text);
    expect_failure(run_messages(file), {file.string()});
  }
}

TEST(RunMessages, TheConversationIsAllThatIsAsked) {
  for (const std::vector<std::string>& more :
       std::vector<std::vector<std::string>>{{"-p", "Hi"}, {"--raw"}, {"--system", "Be kind."}}) {
    EXPECT_EQ(run_messages(kModel / "examples" / "tool_call.json", more).code, 2) << more[0];
  }
}

}  // namespace
}  // namespace dsv4::cli
