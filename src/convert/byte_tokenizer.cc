#include "convert/byte_tokenizer.h"

#include <array>
#include <string_view>
#include <vector>

#include "base/str.h"

namespace dsv4 {
namespace {

struct Added {
  std::string_view name;
  bool special;
};

// Published ids 128800 to 128846, in this order.
constexpr std::array<Added, 47> kPromptTokens = {{
    {"<｜fim▁hole｜>", false},
    {"<｜fim▁begin｜>", false},
    {"<｜fim▁end｜>", false},
    {"<｜User｜>", false},
    {"<｜Assistant｜>", false},
    {"<|EOT|>", false},
    {"<｜tool▁calls▁begin｜>", false},
    {"<｜tool▁calls▁end｜>", false},
    {"<｜tool▁call▁begin｜>", false},
    {"<｜tool▁call▁end｜>", false},
    {"<｜tool▁outputs▁begin｜>", false},
    {"<｜tool▁outputs▁end｜>", false},
    {"<｜tool▁output▁begin｜>", false},
    {"<｜tool▁output▁end｜>", false},
    {"<｜tool▁sep｜>", false},
    {"<｜begin▁of▁repo▁name｜>", false},
    {"<｜end▁of▁repo▁name｜>", false},
    {"<｜begin▁of▁file▁name｜>", false},
    {"<｜end▁of▁file▁name｜>", false},
    {"<｜begin▁of▁file｜>", false},
    {"<｜end▁of▁file｜>", false},
    {"<think>", false},
    {"</think>", false},
    {"<｜place▁holder▁for▁copy｜>", true},
    {"<｜place▁holder▁for▁pointer▁replace｜>", true},
    {"｜DSML｜", false},
    {"<｜begin▁sys｜>", false},
    {"<｜end▁sys｜>", false},
    {"<｜latest_reminder｜>", false},
    {"<｜action｜>", false},
    {"<｜query｜>", false},
    {"<｜authority｜>", false},
    {"<｜domain｜>", false},
    {"<｜task｜>", false},
    {"<｜political｜>", false},
    {"<｜entity｜>", false},
    {"<｜title｜>", false},
    {"<｜safety｜>", false},
    {"<｜answer｜>", false},
    {"<｜search｜>", false},
    {"<dsml:", false},
    {"</dsml:", false},
    {"<｜search▁begin｜>", false},
    {"<｜search▁end｜>", false},
    {"<｜extracted_url｜>", false},
    {"<｜read_url｜>", false},
    {"<｜end_of_query｜>", true},
}};

constexpr int64_t kFirstByte = 3;
constexpr int64_t kFirstMerge = kFirstByte + 256;
constexpr int64_t kPublishedVocab = 129280;
constexpr int64_t kPublishedAdded = 128000;         // 800 placeholders, then kPromptTokens
constexpr int64_t kPublishedPromptTokens = 128800;
constexpr int64_t kPromptCount = static_cast<int64_t>(kPromptTokens.size());

// The pre-tokenizer of the published file, as JSON strings.
constexpr std::string_view kDigits = R"(\\p{N}{1,3})";
constexpr std::string_view kCjk = "[一-龥\u3040-ゟ゠-ヿ]+";
constexpr std::string_view kWords =
    R"([!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|)"
    R"( ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+)";

std::string utf8(uint32_t c) {
  if (c < 0x80) return {static_cast<char>(c)};
  return {static_cast<char>(0xc0 | (c >> 6)), static_cast<char>(0x80 | (c & 63))};
}

// The printable character that stands for each byte: itself where it is a printable Latin-1
// character, else one from U+0100 on. In the order of their ids: the former, then the latter.
std::vector<std::string> byte_characters() {
  std::vector<std::string> kept, moved;
  for (uint32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad);
    if (printable) kept.push_back(utf8(b));
    else moved.push_back(utf8(static_cast<uint32_t>(0x100 + moved.size())));
  }
  kept.insert(kept.end(), moved.begin(), moved.end());
  return kept;
}

std::string escaped(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out.push_back('\\');
    out.push_back(c);
  }
  return out + "\"";
}

// Words that the merges make, in rank order: a space or a letter and a letter, then two such pairs
// of letters. Meaningless, but every id decodes to text.
struct Merge {
  std::string left, right;
};
std::vector<Merge> make_merges(int64_t count) {
  std::vector<Merge> merges;
  const auto full = [&] { return static_cast<int64_t>(merges.size()) >= count; };
  const auto letter = [](int i) { return std::string(1, static_cast<char>('a' + i)); };
  for (int a = 0; a < 26 && !full(); ++a) merges.push_back({"Ġ", letter(a)});
  for (int a = 0; a < 676 && !full(); ++a) merges.push_back({letter(a / 26), letter(a % 26)});
  for (int a = 0; a < 676 * 676 && !full(); ++a) {
    const int x = a / 676, y = a % 676;
    merges.push_back({letter(x / 26) + letter(x % 26), letter(y / 26) + letter(y % 26)});
  }
  return merges;
}

void append_added(std::string& json, int64_t id, std::string_view name, bool special) {
  json += cat(json.back() == '[' ? "\n" : ",\n", R"(  {"id": )", id, R"(, "content": )", escaped(name),
              R"(, "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, )",
              R"("special": )", special, "}");
}

std::string split(std::string_view regex) {
  return cat(R"({"type": "Split", "pattern": {"Regex": ")", regex,
             R"("}, "behavior": "Isolated", "invert": false})");
}

constexpr std::array<std::string_view, 3> kSpecials = {"<｜begin▁of▁sentence｜>",
                                                       "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"};

}  // namespace

int64_t min_tokenizer_vocab() { return kFirstMerge + kPromptCount; }

Result<std::string> byte_tokenizer_json(int64_t vocab) {
  if (vocab < min_tokenizer_vocab()) {
    return Status(Code::kInvalidArgument,
                  cat("vocab_size: expected at least ", min_tokenizer_vocab(),
                      " for the byte-level tokenizer, found ", vocab,
                      "; choose a larger --vocab or give a --tokenizer"));
  }
  const bool published = vocab >= kPublishedVocab;
  const int64_t prompt = published ? kPublishedPromptTokens : vocab - kPromptCount;
  const int64_t merges_end = published ? kPublishedAdded : prompt;

  std::string json = "{\n \"version\": \"1.0\",\n \"truncation\": null,\n \"padding\": null,\n"
                     " \"added_tokens\": [";
  for (size_t i = 0; i < kSpecials.size(); ++i) {
    append_added(json, static_cast<int64_t>(i), kSpecials[i], true);
  }
  for (int64_t id = merges_end; id < prompt; ++id) {
    append_added(json, id, cat("<｜place▁holder▁no▁", id - merges_end, "｜>"), true);
  }
  for (int64_t i = 0; i < kPromptCount; ++i) {
    const Added& token = kPromptTokens[static_cast<size_t>(i)];
    append_added(json, prompt + i, token.name, token.special);
  }
  for (int64_t id = prompt + kPromptCount; published && id < kPublishedVocab; ++id) {
    append_added(json, id, cat("<|place_holder_mm_span_", id, "|>"), true);
  }
  json += cat("\n ],\n \"normalizer\": {\"type\": \"Sequence\", \"normalizers\": []},\n",
              " \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [\n  ", split(kDigits),
              ",\n  ", split(kCjk), ",\n  ", split(kWords),
              ",\n  {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, "
              "\"use_regex\": false}]},\n",
              " \"post_processor\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, "
              "\"trim_offsets\": false, \"use_regex\": true},\n",
              " \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, "
              "\"trim_offsets\": true, \"use_regex\": true},\n",
              " \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, "
              "\"continuing_subword_prefix\": null, \"end_of_word_suffix\": null, "
              "\"fuse_unk\": false, \"byte_fallback\": false,\n  \"vocab\": {");
  int64_t id = 0;
  const auto word = [&](std::string_view text) {
    json += cat(id == 0 ? "\n" : ",\n", "   ", escaped(text), ": ", id);
    ++id;
  };
  for (const std::string_view name : kSpecials) word(name);
  for (const std::string& character : byte_characters()) word(character);
  const std::vector<Merge> merges = make_merges(merges_end - kFirstMerge);
  for (const Merge& merge : merges) word(merge.left + merge.right);
  json += "\n  },\n  \"merges\": [";
  for (size_t i = 0; i < merges.size(); ++i) {
    json += cat(i == 0 ? "\n" : ",\n", "   \"", merges[i].left, " ", merges[i].right, "\"");
  }
  return json + "\n  ]\n }\n}\n";
}

}  // namespace dsv4
