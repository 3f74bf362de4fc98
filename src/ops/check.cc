#include "ops/check.h"

#include "base/str.h"

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

Status check_kv_format(std::string_view op, KvFormat found, KvFormat expected) {
  if (found == expected) return {};
  return Status(Code::kInternal, cat(op, ": cache rows are in a format this backend does not read"));
}

}  // namespace dsv4
