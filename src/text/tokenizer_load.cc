// Reading tokenizer.json: every field that changes ids is either honoured or refused.
#include <charconv>
#include <limits>

#include "base/str.h"
#include "text/byte_alphabet.h"
#include "text/py_json.h"
#include "text/tokenizer_data.h"

namespace dsv4 {
namespace {

// Ids index tables, so a file may not make them arbitrarily large.
constexpr int64_t kMaxTokenId = (int64_t{1} << 22) - 1;

// What ByteLevel splits by when it is asked to do so itself ("use_regex").
constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

class Loader {
 public:
  explicit Loader(std::string_view name) : name_(name), data_(std::make_unique<TokenizerData>()) {}

  Result<std::unique_ptr<TokenizerData>> load(py::Value& root) {
    if (!root.if_object()) return wrong("the file", "an object", root.type_name());
    DSV4_TRY(normalizer(root.find("normalizer")));
    DSV4_TRY(pre_tokenizer(root.find("pre_tokenizer"), "pre_tokenizer"));
    if (!byte_level_) {
      return wrong("pre_tokenizer", "a ByteLevel step", "none",
                   "only byte-level BPE tokenizers can be run");
    }
    if (const auto* decoder = root.find("decoder"); decoder && !decoder->is_null()) {
      if (type_of(*decoder) != "ByteLevel") {
        return wrong("decoder.type", "\"ByteLevel\"", quoted(type_of(*decoder)),
                     "only byte-level BPE tokenizers can be run");
      }
    }
    const py::Value* model = root.find("model");
    if (!model) return wrong("model", "an object", "nothing");
    const py::Value* added = root.find("added_tokens");
    if (added && added->is_null()) added = nullptr;
    if (added && !added->if_array()) return wrong("added_tokens", "an array", added->type_name());

    DSV4_TRY(bpe_options(*model));
    DSV4_TRY(vocabulary(model->find("vocab"), added ? added->if_array()->size() : 0));
    DSV4_TRY(merges(model->find("merges")));
    if (added) DSV4_TRY(added_tokens(*added->if_array()));
    data_->raw_added.finish();
    data_->normalized_added.finish();
    return std::move(data_);
  }

 private:
  static std::string quoted(std::string_view text) {
    std::string out;
    py::dump_string_to(out, text);
    return out;
  }

  static std::string_view type_of(const py::Value& value) {
    const py::Value* type = value.find("type");
    const std::string* name = type ? type->if_string() : nullptr;
    return name ? std::string_view(*name) : std::string_view();
  }

  static bool flag(const py::Value& value, std::string_view key) {
    const py::Value* found = value.find(key);
    return found && found->truthy();
  }

  Status wrong(std::string_view field, std::string_view expected, std::string_view found,
               std::string_view hint = "fetch the checkpoint's tokenizer.json again") const {
    return Status(Code::kCorrupt,
                  cat(name_, ": ", field, ": expected ", expected, ", found ", found, "; ", hint));
  }

  Status normalizer(const py::Value* value) const {
    if (!value || value->is_null()) return {};
    const py::Value* steps = value->find("normalizers");
    if (type_of(*value) == "Sequence" && steps && steps->if_array() && !steps->truthy()) return {};
    return wrong("normalizer", "null or an empty Sequence", quoted(type_of(*value)),
                 "tokenizers that rewrite the text cannot be run");
  }

  Status pre_tokenizer(const py::Value* value, const std::string& field) {
    if (!value || value->is_null()) return wrong(field, "an object", "nothing");
    const std::string_view type = type_of(*value);
    if (type == "Sequence") {
      const py::Value* steps = value->find("pretokenizers");
      if (!steps || !steps->if_array()) return wrong(field + ".pretokenizers", "an array", "none");
      for (size_t i = 0; i < steps->if_array()->size(); ++i) {
        DSV4_TRY(pre_tokenizer(&(*steps->if_array())[i], cat(field, ".pretokenizers[", i, "]")));
      }
      return {};
    }
    if (byte_level_) {
      return wrong(field, "nothing after ByteLevel", quoted(type), "put the splits before it");
    }
    if (type == "Split") return split(*value, field);
    if (type != "ByteLevel") {
      return wrong(field + ".type", "Sequence, Split or ByteLevel", quoted(type),
                   "other pre-tokenizers cannot be run");
    }
    byte_level_ = true;
    if (flag(*value, "add_prefix_space")) {
      return wrong(field + ".add_prefix_space", "false", "true", "it cannot be run");
    }
    const py::Value* use_regex = value->find("use_regex");
    if (use_regex && !use_regex->truthy()) return {};
    return add_splitter(kByteLevelPattern, false, field);
  }

  Status split(const py::Value& value, const std::string& field) {
    // Isolating makes no difference between match and gap, so `invert` has no effect.
    const py::Value* behavior = value.find("behavior");
    if (!behavior || !behavior->if_string() || *behavior->if_string() != "Isolated") {
      return wrong(field + ".behavior", "\"Isolated\"", behavior ? py::dumps(*behavior) : "nothing",
                   "other behaviours cannot be run");
    }
    const py::Value* pattern = value.find("pattern");
    for (const std::string_view kind : {"Regex", "String"}) {
      const py::Value* text = pattern ? pattern->find(kind) : nullptr;
      if (!text || !text->if_string()) continue;
      return add_splitter(*text->if_string(), kind == "String", cat(field, ".pattern.", kind));
    }
    return wrong(field + ".pattern", "{\"Regex\": text} or {\"String\": text}",
                 pattern ? pattern->type_name() : "nothing");
  }

  Status add_splitter(std::string_view pattern, bool literal, const std::string& field) {
    auto splitter = Splitter::compile(pattern, literal);
    if (!splitter.ok()) {
      return wrong(field, "a regular expression that PCRE2 can run",
                   cat(quoted(pattern), ": ", splitter.status().message()));
    }
    data_->splitters.push_back(std::move(splitter).value());
    return {};
  }

  Status bpe_options(const py::Value& model) {
    if (type_of(model) != "BPE") {
      return wrong("model.type", "\"BPE\"", quoted(type_of(model)), "no other model can be run");
    }
    for (const std::string_view affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const py::Value* text = model.find(affix);
      if (text && text->truthy()) {
        return wrong(cat("model.", affix), "null", py::dumps(*text), "affixes cannot be run");
      }
    }
    if (flag(model, "dropout")) {
      return wrong("model.dropout", "null", py::dumps(*model.find("dropout")),
                   "it is for training only");
    }
    data_->ignore_merges = flag(model, "ignore_merges");
    return {};
  }

  // Reads a token id, 0 .. kMaxTokenId.
  Status read_id(const py::Value* value, std::string_view field, int32_t& id) const {
    const py::Int* number = value ? value->if_int() : nullptr;
    int64_t parsed = -1;
    if (number) {
      const std::string& digits = number->digits;
      if (std::from_chars(digits.data(), digits.data() + digits.size(), parsed).ec != std::errc{}) {
        parsed = -1;
      }
    }
    if (parsed < 0 || parsed > kMaxTokenId) {
      return wrong(field, cat("an id, 0..", kMaxTokenId),
                   number  ? number->digits
                   : value ? value->type_name()
                           : "nothing");
    }
    id = static_cast<int32_t>(parsed);
    return {};
  }

  // The content takes its id; `contents` must have room, as views into it are kept.
  Status place(std::string content, int32_t id, const std::string& field) {
    if (static_cast<size_t>(id) >= data_->spans.size())
      data_->spans.resize(static_cast<size_t>(id) + 1);
    TokenizerData::Span& span = data_->spans[static_cast<size_t>(id)];
    if (span.present) {
      return wrong(field, "an id of its own", cat(id, ", which another token has too"));
    }
    const std::string bytes = alphabet_to_bytes(content);
    span.begin = data_->bytes.size();
    span.size = bytes.size();
    span.present = true;
    data_->bytes += bytes;
    data_->contents.push_back(std::move(content));
    data_->ids.emplace(data_->contents.back(), id);
    return {};
  }

  Status vocabulary(const py::Value* vocab, size_t added) {
    const py::Value::Object* members = vocab ? vocab->if_object() : nullptr;
    if (!members) {
      return wrong("model.vocab", "an object of token: id", vocab ? vocab->type_name() : "nothing");
    }
    if (members->empty()) return wrong("model.vocab", "at least one token", "none");
    const size_t most = members->size() + added;
    data_->contents.reserve(most);
    data_->ids.reserve(most);
    data_->spans.reserve(most);
    for (const py::Member& m : *members) {
      int32_t id = 0;
      const auto field = [&] { return cat("model.vocab[", quoted(m.key), "]"); };
      // The message is only put together where there is one: this loop runs 128,000 times.
      if (const Status s = read_id(&m.value, "", id); !s.ok())
        return read_id(&m.value, field(), id);
      if (static_cast<size_t>(id) < data_->spans.size() &&
          data_->spans[static_cast<size_t>(id)].present) {
        return place(m.key, id, field());
      }
      DSV4_TRY(place(m.key, id, {}));
    }
    for (int b = 0; b < 256; ++b) {
      const auto byte = static_cast<unsigned char>(b);
      const auto found = data_->ids.find(byte_to_alphabet(byte));
      if (found != data_->ids.end()) data_->bpe.set_byte_token(byte, found->second);
    }
    return {};
  }

  Status merges(const py::Value* value) {
    const py::Value::Array* list = value ? value->if_array() : nullptr;
    if (!list) return wrong("model.merges", "an array", value ? value->type_name() : "nothing");
    if (list->size() >= std::numeric_limits<uint32_t>::max()) {
      return wrong("model.merges", "less than 2^32 merges", std::to_string(list->size()));
    }
    data_->bpe.reserve_merges(list->size());
    std::string joined;
    for (size_t i = 0; i < list->size(); ++i) {
      const py::Value& merge = (*list)[i];
      const auto field = [&] { return cat("model.merges[", i, "]"); };
      std::string_view left, right;
      if (const std::string* text = merge.if_string()) {
        const size_t space = text->find(' ');
        if (space != text->npos && text->find(' ', space + 1) == text->npos) {
          left = std::string_view(*text).substr(0, space);
          right = std::string_view(*text).substr(space + 1);
        }
      } else if (const auto* pair = merge.if_array(); pair && pair->size() == 2) {
        if ((*pair)[0].if_string() && (*pair)[1].if_string()) {
          left = *(*pair)[0].if_string();
          right = *(*pair)[1].if_string();
        }
      }
      if (left.empty() || right.empty()) {
        return wrong(field(), "\"left right\" or [\"left\", \"right\"]", py::dumps(merge));
      }
      joined.assign(left).append(right);
      int32_t ids[3] = {};
      const std::string_view names[3] = {left, right, joined};
      for (int k = 0; k < 3; ++k) {
        const auto found = data_->ids.find(names[k]);
        if (found == data_->ids.end()) {
          return wrong(field(), "tokens of model.vocab",
                       cat(quoted(names[k]), ", which is not in it"));
        }
        ids[k] = found->second;
      }
      data_->bpe.add_merge(ids[0], ids[1], static_cast<uint32_t>(i), ids[2]);
    }
    return {};
  }

  Status added_tokens(const py::Value::Array& list) {
    for (size_t i = 0; i < list.size(); ++i) {
      const py::Value& token = list[i];
      const std::string field = cat("added_tokens[", i, "]");
      const py::Value* content = token.find("content");
      if (!content || !content->if_string() || content->if_string()->empty()) {
        return wrong(field + ".content", "a string that is not empty",
                     content ? py::dumps(*content) : "nothing");
      }
      const std::string& text = *content->if_string();
      int32_t id = 0;
      DSV4_TRY(read_id(token.find("id"), field + ".id", id));
      for (const std::string_view option : {"single_word", "lstrip", "rstrip"}) {
        if (flag(token, option)) {
          return wrong(cat(field, ".", option), "false", "true", "the option cannot be run");
        }
      }
      const auto known = data_->ids.find(text);
      if (known == data_->ids.end()) {
        DSV4_TRY(place(text, id, field + ".id"));
      } else if (known->second != id) {
        return wrong(field + ".id",
                     cat(known->second, ", the id that ", quoted(text), " has already"),
                     std::to_string(id));
      } else if (data_->spans[static_cast<size_t>(id)].added) {
        return wrong(field + ".content", "a token that is not listed before", quoted(text));
      }
      data_->spans[static_cast<size_t>(id)].added = true;
      data_->spans[static_cast<size_t>(id)].special = flag(token, "special");
      const py::Value* normalized = token.find("normalized");
      // The field's default is: normalized, unless special.
      const bool after = normalized ? normalized->truthy() : !flag(token, "special");
      (after ? data_->normalized_added : data_->raw_added).add(text, id);
    }
    return {};
  }

  std::string_view name_;
  std::unique_ptr<TokenizerData> data_;
  bool byte_level_ = false;
};

}  // namespace

Result<std::unique_ptr<TokenizerData>> load_tokenizer_data(std::string_view json,
                                                           std::string_view name) {
  auto root = py::loads(json);
  if (!root.ok()) {
    return Status(Code::kCorrupt, cat(name, ": ", root.status().message(),
                                      "; fetch the checkpoint's tokenizer.json again"));
  }
  return Loader(name).load(*root);
}

}  // namespace dsv4
