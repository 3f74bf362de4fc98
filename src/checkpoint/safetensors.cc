#include "checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "base/str.h"

namespace dsv4 {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100u << 20;  // the limit of the format's own library
constexpr std::string_view kDamaged = "; the file is damaged, download it again";

// Receives the JSON as a stream of events: headers of 100,000 tensors never become a tree.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderHandler(SafetensorsHeader& out) : out_(out) {}

  const std::string& error() const { return error_; }

  bool start_object(std::size_t) override {
    switch (state_) {
      case State::kStart: state_ = State::kName; return true;
      case State::kEntry:
        entry_ = TensorEntry{};
        entry_.name = name_;
        seen_ = 0;
        state_ = State::kField;
        return true;
      case State::kMetadata: state_ = State::kMetadataKey; return true;
      default: return bad("an unexpected object");
    }
  }
  bool end_object() override {
    switch (state_) {
      case State::kName: state_ = State::kEnd; return true;
      case State::kMetadataKey: state_ = State::kName; return true;
      case State::kField:
        if (seen_ != 7) return bad("dtype, shape or data_offsets is missing");
        state_ = State::kName;
        return finish_entry();
      default: return bad("an unexpected end of an object");
    }
  }
  bool key(std::string& key) override {
    switch (state_) {
      case State::kName:
        name_ = key;
        if (key == "__metadata__") {
          if (has_metadata_) return bad("the name occurs twice");
          has_metadata_ = true;
          state_ = State::kMetadata;
        } else {
          state_ = State::kEntry;
        }
        return true;
      case State::kMetadataKey:
        out_.metadata.emplace_back(key, std::string());
        state_ = State::kMetadataValue;
        return true;
      case State::kField:
        if (key == "dtype") return field(1, State::kDtype);
        if (key == "shape") return field(2, State::kShapeStart);
        if (key == "data_offsets") return field(4, State::kOffsetsStart);
        return bad(cat("unknown key \"", printable(key), "\""));
      default: return bad("an unexpected key");
    }
  }
  bool string(std::string& value) override {
    if (state_ == State::kMetadataValue) {
      out_.metadata.back().second = value;
      state_ = State::kMetadataKey;
      return true;
    }
    if (state_ != State::kDtype) return bad("an unexpected string");
    const auto dtype = dtype_from_name(value);
    if (!dtype) return bad(cat("expected a known dtype, found \"", printable(value), "\""));
    entry_.dtype = *dtype;
    state_ = State::kField;
    return true;
  }
  bool start_array(std::size_t) override {
    if (state_ == State::kShapeStart) {
      state_ = State::kShape;
    } else if (state_ == State::kOffsetsStart) {
      state_ = State::kOffsets;
      offsets_ = 0;
    } else {
      return bad("an unexpected list");
    }
    return true;
  }
  bool end_array() override {
    if (state_ == State::kOffsets && offsets_ != 2) return bad("data_offsets needs two numbers");
    state_ = State::kField;
    return true;
  }
  bool number_unsigned(uint64_t value) override {
    if (state_ == State::kShape) {
      if (value > static_cast<uint64_t>(INT64_MAX)) return bad("shape: a dimension is too large");
      if (entry_.shape.rank == kMaxRank) return bad(cat("shape: more than ", kMaxRank, " dimensions"));
      entry_.shape.dim[static_cast<size_t>(entry_.shape.rank++)] = static_cast<int64_t>(value);
      return true;
    }
    if (state_ == State::kOffsets && offsets_ < 2) {
      (offsets_++ == 0 ? begin_ : end_) = value;
      return true;
    }
    return bad("an unexpected number");
  }
  bool null() override { return other(); }
  bool boolean(bool) override { return other(); }
  bool number_integer(int64_t) override { return other(); }
  bool number_float(double, const std::string&) override { return other(); }
  bool binary(nlohmann::json::binary_t&) override { return other(); }
  bool parse_error(std::size_t at, const std::string&, const nlohmann::json::exception&) override {
    error_ = cat("invalid JSON at byte ", 8 + at);
    return false;
  }

  // Names of hostile files go into one line of an error.
  static std::string printable(std::string_view text) {
    std::string out(text.substr(0, 200));
    for (char& c : out) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
    }
    return out;
  }

 private:
  enum class State {
    kStart, kName, kEntry, kField, kDtype, kShapeStart, kShape, kOffsetsStart, kOffsets,
    kMetadata, kMetadataKey, kMetadataValue, kEnd
  };

  bool field(unsigned bit, State next) {
    if (seen_ & bit) return bad("a key occurs twice");
    seen_ |= bit;
    state_ = next;
    return true;
  }
  bool finish_entry() {
    int64_t elements = 1, bytes = 0;
    for (int i = 0; i < entry_.shape.rank; ++i) {
      if (__builtin_mul_overflow(elements, entry_.shape[i], &elements)) {
        return bad(cat("shape ", to_string(entry_.shape), " overflows"));
      }
    }
    if (__builtin_mul_overflow(elements, static_cast<int64_t>(dtype_size(entry_.dtype)), &bytes)) {
      return bad(cat("shape ", to_string(entry_.shape), " overflows"));
    }
    if (begin_ > end_ || end_ - begin_ != static_cast<uint64_t>(bytes)) {
      return bad(cat("data_offsets: expected ", bytes, " bytes for ", dtype_name(entry_.dtype), " ",
                     to_string(entry_.shape), ", found [", begin_, ", ", end_, "]"));
    }
    entry_.offset = begin_;
    entry_.bytes = static_cast<uint64_t>(bytes);
    out_.entries.push_back(std::move(entry_));
    return true;
  }
  bool other() { return bad("expected a whole number >= 0, a string, a list or an object"); }
  bool bad(const std::string& what) {
    error_ = name_.empty() ? what : cat(printable(name_), ": ", what);
    return false;
  }

  SafetensorsHeader& out_;
  State state_ = State::kStart;
  std::string name_, error_;
  TensorEntry entry_;
  unsigned seen_ = 0;  // bits: dtype, shape, data_offsets
  int offsets_ = 0;
  uint64_t begin_ = 0, end_ = 0;
  bool has_metadata_ = false;
};

Status corrupt(std::string_view file, const std::string& what) {
  return Status(Code::kCorrupt, cat(file, ": ", what, kDamaged));
}

Status parse_json(std::string_view file, std::string_view json, SafetensorsHeader& out) {
  // The parser takes a NUL for the end of its input.
  if (const size_t nul = json.find('\0'); nul != std::string_view::npos) {
    return corrupt(file, cat("bad safetensors header: a NUL in the JSON at byte ", 8 + nul));
  }
  HeaderHandler handler(out);
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &handler)) {
    return corrupt(file, cat("bad safetensors header: ", handler.error()));
  }
  return {};
}

// Data in file order, each tensor beginning where the one before ended.
Status check_layout(std::string_view file, SafetensorsHeader& header) {
  std::vector<TensorEntry>& entries = header.entries;
  const auto before = [](const TensorEntry& a, const TensorEntry& b) {
    return a.offset != b.offset ? a.offset < b.offset : a.bytes < b.bytes;
  };
  if (!std::is_sorted(entries.begin(), entries.end(), before)) {
    std::stable_sort(entries.begin(), entries.end(), before);
  }
  uint64_t end = 0;
  for (const TensorEntry& e : entries) {
    if (e.offset != end) {
      return corrupt(file, cat(HeaderHandler::printable(e.name), ": expected its data at offset ",
                               end, ", found ", e.offset,
                               e.offset < end ? " (tensors overlap)" : " (a hole)"));
    }
    if (__builtin_add_overflow(end, e.bytes, &end)) return corrupt(file, "data_offsets overflow");
  }
  header.data_bytes = end;
  std::unordered_set<std::string_view> names;
  names.reserve(entries.size());
  for (const TensorEntry& e : entries) {
    if (!names.insert(e.name).second) {
      return corrupt(file, cat(HeaderHandler::printable(e.name), ": the name occurs twice"));
    }
  }
  return {};
}

Result<SafetensorsHeader> parse(std::string_view file, std::span<const uint8_t> image,
                                uint64_t file_size, SafetensorsOptions options) {
  if (image.size() < 8 || file_size < 8) {
    return corrupt(file, cat("expected a safetensors file, found ", file_size, " bytes"));
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | image[static_cast<size_t>(i)];
  if (length > kMaxHeaderBytes || length < 2) {
    return corrupt(file, cat("expected a safetensors header of 2 to ", kMaxHeaderBytes,
                             " bytes, found a length of ", length));
  }
  if (length > file_size - 8 || length > image.size() - 8) {
    return corrupt(file, cat("expected a header of ", length, " bytes, found a file of ", file_size,
                             " bytes"));
  }
  if (image[8] != '{') return corrupt(file, "expected '{' at byte 8 of a safetensors file");

  SafetensorsHeader header;
  DSV4_TRY(parse_json(file, {reinterpret_cast<const char*>(image.data()) + 8, length}, header));
  DSV4_TRY(check_layout(file, header));
  header.data_begin = 8 + length;
  uint64_t expected = 0;
  if (__builtin_add_overflow(header.data_begin, header.data_bytes, &expected)) {
    return corrupt(file, "data_offsets overflow");
  }
  for (TensorEntry& e : header.entries) e.offset += header.data_begin;
  if (file_size > expected) {
    return corrupt(file, cat("expected ", expected, " bytes, found ", file_size));
  }
  const bool header_only = options.allow_header_only && file_size == header.data_begin;
  if (file_size < expected && !header_only) {
    return Status(Code::kCorrupt,
                  cat(file, ": truncated: expected ", expected, " bytes, found ", file_size,
                      "; finish the download of this file"));
  }
  return header;
}

}  // namespace

Result<SafetensorsHeader> parse_safetensors_header(std::string_view file,
                                                   std::span<const uint8_t> image,
                                                   uint64_t file_size, SafetensorsOptions options) {
  try {
    return parse(file, image, file_size, options);
  } catch (const std::exception& e) {  // out of memory on hostile input
    return Status(Code::kResourceExhausted, cat(file, ": ", e.what()));
  }
}

}  // namespace dsv4
