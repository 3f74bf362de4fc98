#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "small_tokenizer.h"

namespace dsv4 {
namespace {

using Ids = std::vector<int32_t>;

Tokenizer small() {
  auto tokenizer = Tokenizer::from_json(py::dumps(small_tokenizer()), "small.json");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  return std::move(tokenizer).value();
}

Ids encode(const Tokenizer& tokenizer, std::string_view text) {
  auto ids = tokenizer.encode(text);
  EXPECT_TRUE(ids.ok()) << ids.status().message();
  return ids.ok() ? *ids : Ids{};
}

std::string decode(const Tokenizer& tokenizer, const Ids& ids) {
  auto text = tokenizer.decode(ids);
  EXPECT_TRUE(text.ok()) << text.status().message();
  return text.ok() ? *text : std::string();
}

int32_t id(const Tokenizer& tokenizer, std::string_view content) {
  return tokenizer.token_id(content).value_or(-1);
}

TEST(Tokenizer, MergesByRank) {
  const Tokenizer t = small();
  EXPECT_EQ(encode(t, "hello"), Ids{id(t, "hello")});
  EXPECT_EQ(encode(t, "aaa"), (Ids{id(t, "aa"), id(t, "a")}));
  // "he" comes before "el" and before "a he".
  EXPECT_EQ(encode(t, "ahel"), (Ids{id(t, "ahe"), id(t, "l")}));
  EXPECT_EQ(encode(t, ""), Ids{});
}

TEST(Tokenizer, SplitsBeforeItMerges) {
  const Tokenizer t = small();
  // Digits in threes, then words with the blank before them; the merge "1 2" stays inside a piece.
  EXPECT_EQ(encode(t, "1212"), (Ids{id(t, "12"), id(t, "1"), id(t, "2")}));
  EXPECT_EQ(encode(t, "a w"), (Ids{id(t, "a"), id(t, "\u0120w")}));
  // The last blank of a run goes with the word.
  EXPECT_EQ(encode(t, "a   w"), (Ids{id(t, "a"), id(t, "\u0120\u0120"), id(t, "\u0120w")}));
}

TEST(Tokenizer, CutsAddedTokensLongestFirst) {
  const Tokenizer t = small();
  EXPECT_EQ(encode(t, "<think>in"), (Ids{id(t, "<think>"), id(t, "i"), id(t, "n")}));
  EXPECT_EQ(encode(t, "<think>ing"), Ids{id(t, "<think>ing")});
  EXPECT_EQ(encode(t, "<think<think>"), (Ids{id(t, "<"), id(t, "t"), id(t, "h"), id(t, "i"),
                                             id(t, "n"), id(t, "k"), id(t, "<think>")}));
  EXPECT_EQ(encode(t, "a<\uFF5Cend\uFF5C>a"),
            (Ids{id(t, "a"), id(t, "<\uFF5Cend\uFF5C>"), id(t, "a")}));
  // Tokens of the raw text are cut before those of the normalized one, though they begin later.
  EXPECT_EQ(encode(t, "raw<think>").front(), id(t, "raw<"));
}

TEST(Tokenizer, RoundTripsAnyText) {
  const Tokenizer t = small();
  std::mt19937 random(7);
  const std::string parts[] = {"a",   "hello", " ", "\n", "\u00e9", "\u4e16", "\U0001F642",
                               "123", "<bos>", "<", "\r", "\u180e", "\u3000", "\u0301"};
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (auto n = random() % 20; n > 0; --n) text += parts[random() % std::size(parts)];
    EXPECT_EQ(decode(t, encode(t, text)), text);
  }
}

// The definition of BPE, step by step.
Ids merge_slowly(const Tokenizer& t, std::string_view piece) {
  std::vector<std::string> symbols;
  for (const char c : piece) symbols.push_back(byte_to_alphabet(static_cast<unsigned char>(c)));
  for (;;) {
    size_t best = kSmallMerges.size(), at = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      for (size_t rank = 0; rank < best; ++rank) {
        if (kSmallMerges[rank] == std::pair(symbols[i], symbols[i + 1])) best = rank, at = i;
      }
    }
    if (best == kSmallMerges.size()) break;
    symbols[at] += symbols[at + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
  Ids ids;
  for (const auto& symbol : symbols) ids.push_back(id(t, symbol));
  return ids;
}

TEST(Tokenizer, MergesAsTheDefinitionSays) {
  const Tokenizer t = small();
  std::mt19937 random(11);
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (auto n = 1 + random() % 24; n > 0; --n) text += "ahelow"[random() % 6];
    EXPECT_EQ(encode(t, text), merge_slowly(t, text)) << text;
  }
}

TEST(Tokenizer, LongRunsDoNotHang) {
  const Tokenizer t = small();
  for (const char c : {'a', ' ', '\n', '1', '<', 'l'}) {
    const std::string text(size_t{1} << 17, c);
    EXPECT_EQ(decode(t, encode(t, text)), text);
  }
}

TEST(Tokenizer, IllFormedUtf8BecomesReplacementCharacters) {
  const Tokenizer t = small();
  EXPECT_EQ(encode(t,
                   "a\xFF"
                   "b\xE4\xB8"),
            encode(t, "a\uFFFDb\uFFFD"));
  EXPECT_EQ(decode(t, {id(t, byte_to_alphabet(0xE4)), id(t, "a")}), "\uFFFDa");
}

TEST(Tokenizer, BlanksAreThoseOfUnicode) {
  // U+180E was white space once and PCRE2 still says so; it is not a blank for the original.
  py::Value json = small_tokenizer();
  auto t = Tokenizer::from_json(py::dumps(json), "small.json");
  ASSERT_TRUE(t.ok());
  for (const char* blank : {"\u0085", "\u00a0", "\u1680", "\u2028", "\u3000"}) {
    // Two blanks before a word: the run gives its last one away, so the pieces differ.
    const std::string text = std::string(blank) + blank;
    EXPECT_EQ(decode(*t, encode(*t, text + "a")), text + "a");
  }
  EXPECT_EQ(encode(*t, "\u180e1").size(), 4u);
}

TEST(Tokenizer, KnowsItsTokens) {
  const Tokenizer t = small();
  EXPECT_EQ(t.vocab_size(), 3 + 256 + static_cast<int>(kSmallMerges.size()) + 4);
  EXPECT_EQ(t.token_bytes(id(t, "\u0120w")), " w");
  EXPECT_EQ(t.token_bytes(id(t, "<\uFF5Cend\uFF5C>")), "<\uFF5Cend\uFF5C>");
  EXPECT_EQ(t.token_bytes(-1), std::nullopt);
  EXPECT_EQ(t.token_bytes(t.vocab_size()), std::nullopt);
  EXPECT_EQ(t.token_id("no such token"), std::nullopt);
  EXPECT_TRUE(t.is_special(0));
  EXPECT_FALSE(t.is_special(id(t, "<think>")));
  const auto bad = t.decode({0, 100000});
  ASSERT_FALSE(bad.ok());
  EXPECT_NE(bad.status().message().find("100000"), std::string::npos);
}

TEST(Detokenizer, HoldsBackIncompleteCharacters) {
  const Tokenizer t = small();
  Detokenizer stream(t);
  const std::string text = "a\U0001F642\u4e16";
  std::string out;
  for (const int32_t token : encode(t, text)) {
    const auto piece = stream.push(token);
    ASSERT_TRUE(piece.ok());
    EXPECT_TRUE(piece->empty() || piece->size() == 1 || piece->size() >= 3) << *piece;
    out += *piece;
  }
  EXPECT_EQ(out, text);
  EXPECT_EQ(stream.finish(), "");
  ASSERT_TRUE(stream.push(id(t, byte_to_alphabet(0xF0))).ok());
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_FALSE(stream.push(-1).ok());
}

TEST(Detokenizer, SkipsSpecialTokensOnRequest) {
  const Tokenizer t = small();
  Detokenizer stream(t, true);
  std::string out;
  for (const int32_t token : encode(t, "<bos>a<think>b<eos>")) out += *stream.push(token);
  EXPECT_EQ(out, "a<think>b");
}

TEST(SharedTokenizer, VectorsBothWays) {
  if (!has_shared("tokenizer/tokenizer.json")) {
    GTEST_SKIP() << "../shared/tokenizer is absent: the original's vectors are not checked";
  }
  auto t = Tokenizer::load(shared_file("tokenizer/tokenizer.json"));
  ASSERT_TRUE(t.ok()) << t.status().message();
  EXPECT_EQ(t->vocab_size(), 129280);
  EXPECT_EQ(t->token_id("<think>"), 128821);
  EXPECT_EQ(encode(*t, "<tool_result>"), (Ids{30, 72461, 46148, 32}));
  const auto vectors = py::loads(read_file(shared_file("tokenizer/vectors.json")));
  ASSERT_TRUE(vectors.ok());
  ASSERT_EQ(vectors->if_array()->size(), 1518u);
  for (const py::Value& pair : *vectors->if_array()) {
    const std::string& text = *pair.find("text")->if_string();
    Ids ids;
    for (const py::Value& token : *pair.find("ids")->if_array()) {
      ids.push_back(std::stoi(token.if_int()->digits));
    }
    ASSERT_EQ(encode(*t, text), ids) << text;
    ASSERT_EQ(decode(*t, ids), text);
  }
  const std::string run(size_t{1} << 20, 'a');
  EXPECT_EQ(decode(*t, encode(*t, run)), run);
}

}  // namespace
}  // namespace dsv4
