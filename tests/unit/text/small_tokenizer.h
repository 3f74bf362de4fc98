// A byte-level tokenizer.json small enough to reason about, and the path of the shared data.
#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "text/byte_alphabet.h"
#include "text/py_json.h"

namespace dsv4 {

// Tests run in the root of the source tree; the data, where it exists, lies beside it.
inline std::string shared_file(const std::string& name) {
  return "../shared/" + name;
}

inline bool has_shared(const std::string& name) {
  std::error_code error;
  return std::filesystem::exists(shared_file(name), error);
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Ids: 0 <bos>, 1 <eos>, 2 <pad>, 3..258 the bytes, then the merges in order, then the added
// tokens.
inline const std::vector<std::pair<std::string, std::string>> kSmallMerges = {
    {"h", "e"},   {"l", "l"}, {"he", "ll"}, {"hell", "o"},        {"\u0120", "w"}, {"a", "a"},
    {"aa", "aa"}, {"o", "w"}, {"e", "l"},   {"\u0120", "\u0120"}, {"1", "2"},      {"a", "he"},
};

inline py::Value split_step(const char* pattern) {
  return py::Value::object({{"type", "Split"},
                            {"pattern", py::Value::object({{"Regex", pattern}})},
                            {"behavior", "Isolated"},
                            {"invert", false}});
}

inline py::Value small_tokenizer() {
  py::Value::Object vocab = {{"<bos>", 0}, {"<eos>", 1}, {"<pad>", 2}};
  for (int b = 0; b < 256; ++b) {
    vocab.push_back({byte_to_alphabet(static_cast<unsigned char>(b)), 3 + b});
  }
  py::Value::Array merges;
  int id = 259;
  for (const auto& [left, right] : kSmallMerges) {
    // Both spellings of a merge that files use.
    if (id % 2 == 0) {
      merges.push_back(py::Value(left + " " + right));
    } else {
      merges.push_back(py::Value::array({py::Value(left), py::Value(right)}));
    }
    vocab.push_back({left + right, id++});
  }
  py::Value::Array added;
  const auto add = [&](const char* content, int token, bool special, bool normalized) {
    added.push_back(py::Value::object({{"id", token},
                                       {"content", content},
                                       {"single_word", false},
                                       {"lstrip", false},
                                       {"rstrip", false},
                                       {"normalized", normalized},
                                       {"special", special}}));
  };
  add("<bos>", 0, true, true);
  add("<eos>", 1, true, true);
  add("<pad>", 2, true, true);
  add("<think>", id++, false, true);
  add("<think>ing", id++, false, true);
  add("<\uFF5Cend\uFF5C>", id++, true, true);
  add("raw<", id++, false, false);
  return py::Value::object(
      {{"version", "1.0"},
       {"added_tokens", py::Value(std::move(added))},
       {"normalizer",
        py::Value::object({{"type", "Sequence"}, {"normalizers", py::Value(py::Value::Array())}})},
       {"pre_tokenizer",
        py::Value::object(
            {{"type", "Sequence"},
             {"pretokenizers",
              py::Value::array({split_step("\\p{N}{1,3}"),
                                split_step(" ?\\p{L}+|\\s+(?!\\S)|\\s+|[^\\s\\p{L}]+"),
                                py::Value::object({{"type", "ByteLevel"},
                                                   {"add_prefix_space", false},
                                                   {"use_regex", false}})})}})},
       {"decoder", py::Value::object({{"type", "ByteLevel"}})},
       {"model", py::Value::object({{"type", "BPE"},
                                    {"vocab", py::Value(std::move(vocab))},
                                    {"merges", py::Value(std::move(merges))}})}});
}

}  // namespace dsv4
