// The tolerances, each with its reason. An op without a rule for one of its outputs fails the
// tests.
#include "compare.h"

namespace dsv4::parity {
namespace {

constexpr std::string_view kSums =
    "FP32 sums in another order than FP64: relative to sum |x||w|; then one rounding to BF16 may "
    "fall the other way";
constexpr std::string_view kCopied =
    "values are copied or are one correctly rounded FP32 operation";

const Rule kRules[] = {
    {.op = "embed", .output = "streams", .reason = kCopied},
    {.op = "stream_add", .output = "streams", .reason = kCopied},
    {.op = "ring_insert", .output = "ring", .reason = kCopied},

    {.op = "hc_pre",
     .output = "x",
     .ulps = 1,
     .scale = Scale::kRowMax,
     .scaled = 1e-5,
     .flips = 0.03,
     .reason = "weights pre_j carry the error of an FP32 sum over hc*D terms and of exp"},
    {.op = "hc_pre",
     .output = "post",
     .relative = 1e-5,
     .reason = "2 sigmoid of an FP32 sum over hc*D terms"},
    {.op = "hc_pre",
     .output = "comb",
     .relative = 2e-5,
     .scale = Scale::kRowMax,
     .scaled = 1e-6,
     .reason = "exp of an FP32 sum; Sinkhorn rounds do not amplify"},
    {.op = "hc_pre_norm",
     .output = "x",
     .ulps = 2,
     .scale = Scale::kRowMax,
     .scaled = 1e-5,
     .flips = 0.05,
     .reason = "as hc_pre, then a BF16 step of the norm's input and one of its own"},
    {.op = "hc_pre_norm", .output = "post", .relative = 1e-5, .reason = "as hc_pre"},
    {.op = "hc_pre_norm",
     .output = "comb",
     .relative = 2e-5,
     .scale = Scale::kRowMax,
     .scaled = 1e-6,
     .reason = "as hc_pre"},
    {.op = "hc_post",
     .output = "streams",
     .ulps = 1,
     .scale = Scale::kRowMax,
     .scaled = 0x1p-21,
     .flips = 0.02,
     .reason = "five FP32 products summed in any order, fused or not, rounded to BF16 once"},
    {.op = "hc_post_pre_norm",
     .output = "streams",
     .ulps = 1,
     .scale = Scale::kRowMax,
     .scaled = 0x1p-21,
     .flips = 0.02,
     .reason = "as hc_post"},
    {.op = "hc_post_pre_norm",
     .output = "x",
     .ulps = 2,
     .scale = Scale::kRowMax,
     .scaled = 1e-4,
     .flips = 0.1,
     .reason = "as hc_pre_norm, on streams of which some round the other way"},
    {.op = "hc_post_pre_norm",
     .output = "post",
     .relative = 1e-4,
     .reason = "as hc_pre; a BF16 step of one of hc*D terms, 2^-9 of a hundredth of the sum"},
    {.op = "hc_post_pre_norm",
     .output = "comb",
     .relative = 1e-4,
     .scale = Scale::kRowMax,
     .scaled = 1e-5,
     .reason = "as post"},
    {.op = "hc_head",
     .output = "x",
     .ulps = 2,
     .scale = Scale::kRowMax,
     .scaled = 1e-5,
     .flips = 0.05,
     .reason = "as hc_pre_norm"},

    {.op = "rms_norm",
     .output = "y",
     .ulps = 1,
     .flips = 0.02,
     .reason = "mean of squares in FP32 instead of FP64: 1e-6 relative, one BF16 rounding"},
    {.op = "linear",
     .output = "y",
     .ulps = 1,
     .scale = Scale::kMagnitude,
     .scaled = 1,
     .flips = 0.05,
     .reason = kSums},
    {.op = "linear_stack",
     .output = "y",
     .ulps = 1,
     .scale = Scale::kMagnitude,
     .scaled = 1,
     .flips = 0.05,
     .reason = kSums},
    {.op = "grouped_linear",
     .output = "y",
     .ulps = 1,
     .scale = Scale::kMagnitude,
     .scaled = 1,
     .flips = 0.05,
     .reason = kSums},
    {.op = "rope",
     .output = "x",
     .ulps = 1,
     .scale = Scale::kPair,
     .scaled = 0x1p-20,
     .flips = 0.01,
     .reason = "sin and cos within a few FP32 steps of libm's; the FP32 angle itself is the same"},
    {.op = "qkv",
     .output = "q",
     .ulps = 3,
     .scale = Scale::kPair,
     .scaled = 0x1p-8,
     .cosine = 0.9999,
     .reason = "the BF16 chain of the head norm: a mean that rounds the other way scales a head by "
               "2^-8; FP32 inside is allowed"},
    {.op = "qkv",
     .output = "kv",
     .columns = Columns::kRounded,
     .relative = 0.125,
     .scale = Scale::kRowMax,
     .scaled = 0x1p-9,
     .flips = 0.02,
     .reason = "a BF16 step before kv8 moves a value across an E4M3 border: one code"},
    {.op = "qkv",
     .output = "kv",
     .columns = Columns::kRope,
     .ulps = 2,
     .scale = Scale::kPair,
     .scaled = 0x1p-8,
     .flips = 0.05,
     .reason = "a BF16 step of the norm's output, rotated"},

    {.op = "compress", .output = "tail", .reason = kCopied},
    {.op = "compress",
     .output = "entries",
     .columns = Columns::kRounded,
     .relative = 0.125,
     .scale = Scale::kRowMax,
     .scaled = 0x1p-9,
     .flips = 0.03,
     .reason = "FP32 softmax over the pooled rows, two BF16 roundings, then one E4M3 code"},
    {.op = "compress",
     .output = "entries",
     .columns = Columns::kRope,
     .ulps = 3,
     .scale = Scale::kPair,
     .scaled = 0x1p-7,
     .flips = 0.1,
     .reason = "two BF16 steps, rotated"},
    {.op = "compress",
     .output = "keys",
     .relative = 0.5,
     .scale = Scale::kRowMax,
     .scaled = 1.0 / 6,
     .flips = 0.04,
     .reason = "a BF16 step before idx4 moves a value across an E2M1 border: one code, up to half "
               "of its value"},
    {.op = "index_select",
     .output = "q",
     .relative = 0.5,
     .scale = Scale::kRowMax,
     .scaled = 1.0 / 6,
     .flips = 0.02,
     .reason = "as compress keys; selections are judged by scores"},
    {.op = "attention",
     .output = "o",
     .ulps = 1,
     .scale = Scale::kRowMax,
     .scaled = 0x1p-8,
     .cosine = 0.99999,
     .reason =
         "numerators are BF16: relative to a running maximum they round differently, 2^-9 each"},

    {.op = "attend",
     .output = "o",
     .ulps = 2,
     .scale = Scale::kRowMax,
     .scaled = 0x1p-6,
     .cosine = 0.9999,
     .reason = "as attention, with queries, keys and entries that may be a step off"},
    {.op = "attend",
     .output = "o",
     .ulps = 2,
     .scale = Scale::kRowMax,
     .scaled = 0x1p-5,
     .cosine = 0.9999,
     .reason = "as above; cut sums move more of these steps, and one E4M3 code is 2^-3 of a value, times the "
               "share of its key",
     .sums = Sums::kTensorCores},

    {.op = "moe",
     .output = "y",
     .ulps = 1,
     .scale = Scale::kRowMax,
     .scaled = 0x1p-8,
     .flips = 0.1,
     .cosine = 0.99999,
     .reason = "a BF16 step of h may move one E4M3 code of w2's input, 2^-3 of one of I terms; one BF16 "
               "step per expert"},
    {.op = "moe",
     .output = "y",
     .ulps = 1,
     .scale = Scale::kRowMax,
     .scaled = 0x1p-6,
     .flips = 0.1,
     .cosine = 0.9999,
     .reason = "as above; cut sums move more of these steps, and with small I a few of the terms are large",
     .sums = Sums::kTensorCores},
};

// Outputs of a fused op (prefixes, as above) that a leaf makes alone, from the same inputs: the leaf's rules.
struct Leaf {
  std::string_view op, output, leaf_op, leaf_output;
};
constexpr Leaf kLeaves[] = {
    {"attend", "q", "qkv", "q"},
    {"attend", "kv", "qkv", "kv"},
    {"attend", "ring", "qkv", "kv"},
    {"attend", "entries", "compress", "entries"},
    {"attend", "keys", "compress", "keys"},
    {"attend", "tail", "compress", "tail"},
    {"attend", "key_tail", "compress", "tail"},
    {"attend", "index_q", "index_select", "q"},
};

}  // namespace

std::vector<Rule> rules_for(std::string_view op, std::string_view output, Sums sums) {
  for (const Leaf& l : kLeaves) {
    if (l.op == op && output.starts_with(l.output)) return rules_for(l.leaf_op, l.leaf_output, sums);
  }
  std::vector<Rule> rules;
  for (const Rule& r : kRules) {
    if (r.op == op && output.substr(0, r.output.size()) == r.output && r.sums == sums) rules.push_back(r);
  }
  return rules.empty() && sums != Sums::kFp32 ? rules_for(op, output) : rules;
}

double sum_error(int64_t n) {
  // Worst case of 8 or more running sums and a tree over them; each addition errs by 2^-24.
  return 0x1p-24 * (static_cast<double>(n) / 8 + 16);
}

}  // namespace dsv4::parity
