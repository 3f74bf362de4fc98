#include "text/tokenizer.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/str.h"
#include "text/byte_alphabet.h"
#include "text/tokenizer_data.h"
#include "text/utf8.h"

namespace dsv4 {

void AddedTokens::finish() {
  std::sort(tokens_.begin(), tokens_.end(),
            [](const Token& a, const Token& b) { return a.content < b.content; });
  first_byte_.assign(256, Range{0, 0});
  for (size_t i = 0; i < tokens_.size(); ++i) {
    Range& range = first_byte_[static_cast<unsigned char>(tokens_[i].content.front())];
    if (range.end == 0) range.begin = i;
    range.end = i + 1;
  }
}

const AddedTokens::Token* AddedTokens::longest(std::string_view text) const {
  auto [begin, end] = first_byte_[static_cast<unsigned char>(text.front())];
  const Token* best = nullptr;
  // tokens_[begin, end) are those that agree with the first `depth` bytes of the text.
  for (size_t depth = 1; begin < end; ++depth) {
    if (tokens_[begin].content.size() == depth) {
      best = &tokens_[begin];
      ++begin;
    }
    if (depth == text.size()) break;
    const auto byte = static_cast<unsigned char>(text[depth]);
    const auto first = tokens_.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto last = tokens_.begin() + static_cast<std::ptrdiff_t>(end);
    const auto at = [depth](const Token& t) {
      return static_cast<unsigned char>(t.content[depth]);
    };
    const auto low =
        std::partition_point(first, last, [&](const Token& t) { return at(t) < byte; });
    const auto high =
        std::partition_point(low, last, [&](const Token& t) { return at(t) <= byte; });
    begin = static_cast<size_t>(low - tokens_.begin());
    end = static_cast<size_t>(high - tokens_.begin());
  }
  return best;
}

void AddedTokens::cut(std::string_view text, std::vector<Part>& parts) const {
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const Token* token = longest(text.substr(at));
    if (!token) {
      ++at;
      continue;
    }
    if (at > done) parts.push_back({text.substr(done, at - done), -1});
    parts.push_back({text.substr(at, token->content.size()), token->id});
    at += token->content.size();
    done = at;
  }
  if (done < text.size()) parts.push_back({text.substr(done), -1});
}

Tokenizer::Tokenizer(std::unique_ptr<TokenizerData> data) : data_(std::move(data)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::load(const std::string& path) {
  constexpr std::string_view kHint = "give the tokenizer.json that belongs to the checkpoint";
  std::error_code error;
  const auto kind = std::filesystem::status(path, error).type();
  if (kind == std::filesystem::file_type::not_found) {
    return Status(Code::kNotFound, cat(path, ": no such file; ", kHint));
  }
  if (kind == std::filesystem::file_type::directory) {
    return Status(Code::kInvalidArgument,
                  cat(path, ": expected a tokenizer.json, found a directory; ", kHint));
  }
  std::ifstream file(path, std::ios::binary);
  std::string json{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file) {
    return Status(Code::kIo, cat(path, ": cannot be read: ", std::strerror(errno), "; ", kHint));
  }
  return from_json(json, path);
}

Result<Tokenizer> Tokenizer::from_json(std::string_view json, std::string_view name) {
  DSV4_ASSIGN(auto data, load_tokenizer_data(json, name));
  return Tokenizer(std::move(data));
}

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text) const {
  // Positions inside of a piece are 32 bits wide.
  constexpr size_t kMaxBytes = size_t{1} << 30;
  if (text.size() > kMaxBytes) {
    return Status(
        Code::kInvalidArgument,
        cat("a text of ", text.size(), " bytes: expected at most ", kMaxBytes, "; split it"));
  }
  std::string repaired;
  if (!is_utf8(text)) text = repaired = utf8_lossy(text);

  std::vector<AddedTokens::Part> raw, parts;
  data_->raw_added.cut(text, raw);
  for (const AddedTokens::Part& part : raw) {
    if (part.id >= 0) {
      parts.push_back(part);
    } else {
      data_->normalized_added.cut(part.text, parts);
    }
  }

  std::vector<int32_t> ids;
  Bpe::Scratch scratch;
  std::vector<std::string_view> pieces, split;
  for (const AddedTokens::Part& part : parts) {
    if (part.id >= 0) {
      ids.push_back(part.id);
      continue;
    }
    pieces.assign(1, part.text);
    for (const Splitter& splitter : data_->splitters) {
      split.clear();
      DSV4_TRY(splitter.split(pieces, split));
      pieces.swap(split);
    }
    for (const std::string_view piece : pieces) {
      if (data_->ignore_merges) {
        std::string content;
        for (const char c : piece) content += byte_to_alphabet(static_cast<unsigned char>(c));
        if (const auto id = token_id(content)) {
          ids.push_back(*id);
          continue;
        }
      }
      DSV4_TRY(data_->bpe.encode(piece, ids, scratch));
    }
  }
  return ids;
}

Result<std::string> Tokenizer::decode(const std::vector<int32_t>& ids) const {
  Detokenizer detokenizer(*this);
  std::string text;
  for (const int32_t id : ids) {
    DSV4_ASSIGN(const std::string piece, detokenizer.push(id));
    text += piece;
  }
  return text + detokenizer.finish();
}

std::optional<int32_t> Tokenizer::token_id(std::string_view content) const {
  const auto found = data_->ids.find(content);
  if (found == data_->ids.end()) return std::nullopt;
  return found->second;
}

std::optional<std::string_view> Tokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return std::nullopt;
  const TokenizerData::Span& span = data_->spans[static_cast<size_t>(id)];
  if (!span.present) return std::nullopt;
  return std::string_view(data_->bytes).substr(span.begin, span.size);
}

bool Tokenizer::is_added(int32_t id) const {
  return id >= 0 && id < vocab_size() && data_->spans[static_cast<size_t>(id)].added;
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && data_->spans[static_cast<size_t>(id)].special;
}

int32_t Tokenizer::vocab_size() const {
  return static_cast<int32_t>(data_->spans.size());
}

Result<std::string> Detokenizer::push(int32_t id) {
  const auto bytes = tokenizer_->token_bytes(id);
  if (!bytes) {
    return Status(Code::kInvalidArgument,
                  cat("token id ", id, " has no token: expected an id of the vocabulary, below ",
                      tokenizer_->vocab_size(), "; is this the checkpoint's tokenizer?"));
  }
  if (skip_special_ && tokenizer_->is_special(id)) return std::string();
  const std::string all = std::exchange(held_, {}).append(*bytes);
  std::string out;
  for (std::string_view rest = all; !rest.empty();) {
    const Utf8Step step = utf8_step(rest);
    if (step.kind == Utf8Kind::kIncomplete) {
      held_ = rest;
      break;
    }
    out.append(step.kind == Utf8Kind::kValid ? rest.substr(0, step.size) : kReplacementCharacter);
    rest.remove_prefix(step.size);
  }
  return out;
}

std::string Detokenizer::finish() {
  return utf8_lossy(std::exchange(held_, {}));
}

}  // namespace dsv4
