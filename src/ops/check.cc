#include "ops/check.h"

#include "base/str.h"
#include "formats/kv_row.h"
#include "ops/args/sample.h"

namespace dsv4 {

Status check_dim(std::string_view op, std::string_view what, int64_t expected, int64_t found) {
  if (expected == found) return {};
  return Status(Code::kInternal, cat(op, ": ", what, ": expected ", expected, ", found ", found));
}

Status check_dtype(std::string_view op, std::string_view what, DType found,
                   std::initializer_list<DType> allowed) {
  std::string names;
  for (DType t : allowed) {
    if (t == found) return {};
    names += cat(names.empty() ? "" : " or ", dtype_name(t));
  }
  return Status(Code::kInternal, cat(op, ": ", what, ": expected ", names, ", found ", dtype_name(found)));
}

Status check_sample_vocab(int64_t V) {
  if (V >= 1 && V <= kMaxSampleVocab) return {};
  return Status(Code::kUnsupported, cat("sample: V: expected 1..", kMaxSampleVocab, " logits in a row, found ", V));
}

Status check_kv_format(std::string_view op, KvFormat found, KvFormat expected) {
  if (found == expected) return {};
  return Status(Code::kInternal, cat(op, ": cache rows: expected ", kv_format_name(expected), ", found ", kv_format_name(found)));
}

Status check_kv_row(std::string_view op, KvFormat format, int64_t d, int64_t r) {
  if (format == KvFormat::kBf16 || (r <= d && r % 2 == 0 && d % 2 == 0 && has_kv_row(d, r))) return {};
  return Status(Code::kUnsupported, cat(op, ": cache rows of ", d, " values with ", r, " RoPE dims: fp8 holds even numbers of both and at most ",
                                        kKvScaleBytes * kKv8Group, " other dims; use bf16"));
}

}  // namespace dsv4
