// A small tokenizer for synthetic checkpoints: the layout of the published tokenizer.json (specials,
// 256 bytes, merges in rank order, added tokens at the end) for any size of vocabulary.
#pragma once

#include <cstdint>
#include <string>

#include "dsv4/status.h"

namespace dsv4 {

// The smallest vocabulary: 3 specials, 256 bytes and the added tokens of the prompt format.
int64_t min_tokenizer_vocab();

// tokenizer.json with at most `vocab` ids. From 129280 ids on, added tokens have their published ids.
Result<std::string> byte_tokenizer_json(int64_t vocab);

}  // namespace dsv4
