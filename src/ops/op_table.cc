#include "ops/op_table.h"

#include "formats/kv_row.h"
#include "ops/backend.h"

namespace dsv4 {
namespace {

constexpr bool is_fused(std::string_view kind) { return kind == "fused"; }

constexpr OpInfo kOps[] = {
#define DSV4_OP_INFO(name, Args, kind) {#name, is_fused(#kind)},
    DSV4_OP_LIST(DSV4_OP_INFO)
#undef DSV4_OP_INFO
};

}  // namespace

std::span<const OpInfo> op_list() { return kOps; }

std::string_view op_impl(const OpTable& table, size_t index) {
  const std::string_view impls[] = {
#define DSV4_OP_IMPL(name, Args, kind) table.name.impl,
      DSV4_OP_LIST(DSV4_OP_IMPL)
#undef DSV4_OP_IMPL
  };
  return impls[index];
}

int64_t kv_row_bytes(KvFormat format, int64_t head_dim, int64_t rope_dim) {
  switch (format) {
    case KvFormat::kBf16: return head_dim * 2;
    case KvFormat::kFp8Rope: return kv_row_fp8_bytes(head_dim, rope_dim);
  }
  return 0;
}

}  // namespace dsv4
