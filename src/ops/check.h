// Checks a launcher makes once, with messages that name op, argument, expected and found.
#pragma once

#include <initializer_list>
#include <string_view>

#include "base/dtype.h"
#include "dsv4/status.h"
#include "ops/cache_spec.h"

namespace dsv4 {

Status check_dim(std::string_view op, std::string_view what, int64_t expected, int64_t found);
Status check_dtype(std::string_view op, std::string_view what, DType found,
                   std::initializer_list<DType> allowed);
// The vocabulary of op `sample`.
Status check_sample_vocab(int64_t V);
Status check_kv_format(std::string_view op, KvFormat found, KvFormat expected);
// Rows of d values with r RoPE dims can be in this format.
Status check_kv_row(std::string_view op, KvFormat format, int64_t d, int64_t r);

}  // namespace dsv4
