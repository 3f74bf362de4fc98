// Text to token ids and back, as a tokenizer.json of the byte-level BPE kind says.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dsv4/status.h"

namespace dsv4 {

struct TokenizerData;

class Tokenizer {
 public:
  // Errors name the file, the field, what was expected and found.
  static Result<Tokenizer> load(const std::string& path);
  // `name` stands for the file in messages.
  static Result<Tokenizer> from_json(std::string_view json, std::string_view name);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // The contents of added tokens (<｜User｜>, <think>, ...) in `text` become their ids; nothing is
  // put before or after. Ill-formed UTF-8 is read as U+FFFD, one for each maximal subpart, as the
  // original's callers do. Thread-safe.
  Result<std::vector<int32_t>> encode(std::string_view text) const;

  // The text of all `ids`, special tokens included; bytes that are not UTF-8 become U+FFFD.
  // Error: an id without a token.
  Result<std::string> decode(const std::vector<int32_t>& ids) const;

  // The id of a token by its content as written in the file.
  std::optional<int32_t> token_id(std::string_view content) const;

  // Bytes that the token adds to the text; nullopt for an id without a token.
  std::optional<std::string_view> token_bytes(int32_t id) const;

  // An added token that the file marks "special": skipped by decoders that are asked to.
  bool is_special(int32_t id) const;

  // A token with a content of its own, "special" or not: a marker, never made by merging bytes.
  bool is_added(int32_t id) const;

  // One more than the largest id.
  int32_t vocab_size() const;

 private:
  explicit Tokenizer(std::unique_ptr<TokenizerData> data);
  std::unique_ptr<TokenizerData> data_;
};

// Ids to text as they come: a character that is not complete yet is held back.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special = false)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  // The text that `id` completes, maybe empty.
  Result<std::string> push(int32_t id);

  // What is still held back (as U+FFFD), at the end of the stream.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string held_;  // the start of one UTF-8 sequence, at most 3 bytes
};

}  // namespace dsv4
