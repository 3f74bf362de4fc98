// What a loaded tokenizer consists of; shared by the loader and the tokenizer, private to text/.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/bpe.h"
#include "text/splitter.h"

namespace dsv4 {

// Cuts the added tokens out of a text: at each place the longest one that matches.
class AddedTokens {
 public:
  void add(std::string_view content, int32_t id) { tokens_.push_back({std::string(content), id}); }
  // To be called once, after the last add().
  void finish();

  struct Part {
    std::string_view text;
    int32_t id;  // -1: text between added tokens
  };
  // Appends the parts of `text` in order; no part is empty.
  void cut(std::string_view text, std::vector<Part>& parts) const;

 private:
  struct Token {
    std::string content;
    int32_t id;
  };
  struct Range {
    size_t begin, end;
  };
  // The longest token that `text` starts with, or nullptr.
  const Token* longest(std::string_view text) const;

  std::vector<Token> tokens_;      // sorted by content
  std::vector<Range> first_byte_;  // [256] tokens that start with the byte
};

struct TokenizerData {
  struct Span {
    size_t begin = 0;
    size_t size = 0;
    bool present = false;
    bool added = false;
    bool special = false;
  };

  std::string bytes;        // of all tokens, one after the other
  std::vector<Span> spans;  // [vocab_size] into bytes
  // Keyed by the content as written in the file; the keys live in `contents`.
  std::vector<std::string> contents;
  std::unordered_map<std::string_view, int32_t> ids;

  // Tokens that match the raw text come before those that match the normalized one. The only
  // normalizer we accept changes nothing, so all that is left of the difference is this order.
  AddedTokens raw_added;
  AddedTokens normalized_added;
  std::vector<Splitter> splitters;
  Bpe bpe;
  bool ignore_merges = false;  // a piece that is a token is that token, whatever its merges
};

Result<std::unique_ptr<TokenizerData>> load_tokenizer_data(std::string_view json,
                                                           std::string_view name);

}  // namespace dsv4
