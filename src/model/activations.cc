#include "model/activations.h"

#include <algorithm>
#include <type_traits>

namespace dsv4 {
namespace {

constexpr size_t kAlign = 256;

// Calls f(pointer member, element count) for every array of the arena, in one fixed order.
template <class F>
void for_each_array(Activations& a, const ModelConfig& c, const ModelPlan& plan, F&& f) {
  const int64_t T = a.max_rows, R = a.max_logit_rows;
  const int64_t D = c.hidden_size, hc = c.hc_mult, d = c.head_dim, H = c.num_attention_heads;
  int64_t columns = 0;
  bool indexer = false;
  for (const LayerPlan& layer : plan.layers) {
    if (layer.has_compressor()) columns = std::max(columns, layer.compressor_columns(d));
    indexer = indexer || layer.has_indexer();
  }
  const int64_t mtp = plan.mtp.empty() ? 0 : 1, csa = indexer ? 1 : 0;

  f(a.streams, T * hc * D);
  f(a.mtp_streams, mtp * T * hc * D);
  f(a.mtp_h, mtp * T * hc * D);
  f(a.x, T * D);
  f(a.out, T * D);
  f(a.post, T * hc);
  f(a.comb, T * hc * hc);
  f(a.qr, T * c.q_lora_rank);
  f(a.q, T * H * d);
  f(a.kv, T * d);
  f(a.o, T * H * d);
  f(a.o_lora, T * c.o_groups * c.o_lora_rank);
  f(a.c, T * columns);
  f(a.s, T * columns);
  f(a.index_c, csa * T * 2 * c.index_head_dim);
  f(a.index_s, csa * T * 2 * c.index_head_dim);
  f(a.index_q, csa * T * c.index_n_heads * c.index_head_dim);
  f(a.index_weights, csa * T * c.index_n_heads);
  f(a.selected, csa * T * c.index_topk);
  f(a.selected_count, csa * T);
  f(a.expert_ids, T * c.num_experts_per_tok);
  f(a.expert_weights, T * c.num_experts_per_tok);
  f(a.head_x, R * D);
  f(a.logits, R * c.vocab_size);
  f(a.tokens, R);
}

size_t padded(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

size_t activation_bytes(const ModelConfig& config, const ModelPlan& plan, int64_t max_rows,
                        int64_t max_logit_rows) {
  Activations a;
  a.max_rows = max_rows;
  a.max_logit_rows = max_logit_rows;
  size_t bytes = 0;
  for_each_array(a, config, plan, [&](auto*& array, int64_t n) {
    bytes += padded(static_cast<size_t>(n) * sizeof(*array));
  });
  return bytes;
}

Result<Activations> allocate_activations(const ModelConfig& config, const ModelPlan& plan,
                                         int64_t max_rows, int64_t max_logit_rows, Backend& backend) {
  Activations a;
  a.max_rows = max_rows;
  a.max_logit_rows = max_logit_rows;
  DSV4_ASSIGN(a.arena, backend.allocate(activation_bytes(config, plan, max_rows, max_logit_rows)));
  char* at = a.arena.as<char>();
  for_each_array(a, config, plan, [&](auto*& array, int64_t n) {
    using T = std::remove_reference_t<decltype(*array)>;
    if (n) array = reinterpret_cast<T*>(at);
    at += padded(static_cast<size_t>(n) * sizeof(T));
  });
  return a;
}

}  // namespace dsv4
