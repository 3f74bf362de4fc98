// dsv4 inspect: what a checkpoint is, from its headers alone.
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "api/backends.h"
#include "checkpoint/checkpoint.h"
#include "command.h"
#include "convert/inventory.h"
#include "dsv4/engine.h"
#include "formats/weight_format.h"
#include "model/config.h"
#include "model/layer_plan.h"
#include "ops/op_table.h"

namespace dsv4::apps {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string model, device = "auto", cache_rows = "auto";
  bool tensors = false, plan = false, ops = false, json = false;
  int64_t context = 0, sequences = 1;
};

struct Inspected {
  ModelConfig config;
  ModelPlan plan;
  Inventory inventory;
};

// "CSA, hash" -> the layers of that kind
std::map<std::string, std::vector<int64_t>> layer_kinds(const ModelPlan& plan) {
  std::map<std::string, std::vector<int64_t>> kinds;
  for (const LayerPlan& layer : plan.layers) {
    kinds[std::string(attention_kind_name(layer.attention))].push_back(layer.index);
  }
  return kinds;
}

// "2, 4, 6" or "2..10"
std::string shown(const std::vector<int64_t>& layers) {
  std::string out;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers.size() > 8 && i == 3) {
      out += ", ...";
      i = layers.size() - 1;
    }
    out += (out.empty() ? "" : ", ") + std::to_string(layers[i]);
  }
  return out;
}

std::string grouped(uint64_t n) {
  std::string digits = std::to_string(n);
  for (size_t at = digits.size(); at > 3;) digits.insert(at -= 3, ",");
  return digits;
}
std::string grouped(int64_t n) { return grouped(static_cast<uint64_t>(n)); }

void print_list(const char* title, const std::vector<std::string>& names) {
  if (names.empty()) return;
  constexpr size_t kShown = 10;
  std::printf("%s: %zu\n", title, names.size());
  for (size_t i = 0; i < names.size() && i < kShown; ++i) std::printf("  %s\n", names[i].c_str());
  if (names.size() > kShown) std::printf("  ... and %zu more\n", names.size() - kShown);
}

void print_summary(const Checkpoint& checkpoint, const Inspected& m) {
  const ModelConfig& c = m.config;
  const auto ll = [](int64_t x) { return static_cast<long long>(x); };
  std::printf("%s\n", checkpoint.path().c_str());
  std::printf("  %lld layers (%lld with hash routing), %lld MTP, hidden %lld, vocabulary %lld\n",
              ll(c.num_hidden_layers), ll(c.num_hash_layers), ll(c.mtp_layers()), ll(c.hidden_size),
              ll(c.vocab_size));
  for (const auto& [kind, layers] : layer_kinds(m.plan)) {
    std::printf("  %s: %zu layers (%s)\n", kind.c_str(), layers.size(), shown(layers).c_str());
  }
  std::printf("  attention: %lld heads of %lld (%lld RoPE), q rank %lld, %lld output groups of rank "
              "%lld, window %lld\n",
              ll(c.num_attention_heads), ll(c.head_dim), ll(c.qk_rope_head_dim), ll(c.q_lora_rank),
              ll(c.o_groups), ll(c.o_lora_rank), ll(c.sliding_window));
  std::printf("  indexer: %lld heads of %lld, top %lld\n", ll(c.index_n_heads), ll(c.index_head_dim),
              ll(c.index_topk));
  std::printf("  experts: %lld of %lld per token, intermediate %lld, %lld shared\n",
              ll(c.num_experts_per_tok), ll(c.n_routed_experts), ll(c.moe_intermediate_size),
              ll(c.n_shared_experts));
  std::printf("  residual streams: %lld, Sinkhorn rounds: %lld\n", ll(c.hc_mult),
              ll(c.hc_sinkhorn_iters));
  std::printf("  context: %lld\n", ll(c.max_position_embeddings));
  if (!c.draft_note.empty()) std::printf("  note: %s\n", c.draft_note.c_str());

  const Inventory& inv = m.inventory;
  std::printf("parameters: %.2f B, %.2f B used per token, MTP %.2f B\n",
              static_cast<double>(inv.parameters) / 1e9,
              static_cast<double>(inv.active_parameters) / 1e9,
              static_cast<double>(inv.mtp_parameters) / 1e9);
  std::printf("tensors: %s in %zu files, %s bytes of payload\n", grouped(inv.tensors).c_str(),
              checkpoint.shard_count(), grouped(inv.payload_bytes).c_str());
  for (const auto& [dtype, total] : inv.by_dtype) {
    std::printf("  %-8s %10s tensors %22s bytes\n", std::string(dtype_name(dtype)).c_str(),
                grouped(total.tensors).c_str(), grouped(total.bytes).c_str());
  }
  for (const auto& [format, count] : inv.expert_formats) {
    std::printf("routed experts: %s matrices of %s\n", grouped(count).c_str(),
                std::string(format_info(format).name).c_str());
  }
  if (inv.without_data > 0) {
    std::printf("headers only: the data of %s tensors are not here\n", grouped(inv.without_data).c_str());
  }
  print_list("missing", inv.missing);
  print_list("mismatched", inv.mismatched);
  print_list("unexpected", inv.unexpected);
  print_list("not used (draft part)", inv.unused);
  if (inv.complete()) std::printf("every tensor of the config is there\n");
}

Json tensors_json(const Checkpoint& checkpoint) {
  Json out = Json::array();
  for (const TensorEntry& e : checkpoint.entries()) {
    Json shape = Json::array();
    for (int i = 0; i < e.shape.rank; ++i) shape.push_back(e.shape[i]);
    out.push_back({{"name", e.name},
                   {"dtype", dtype_name(e.dtype)},
                   {"shape", std::move(shape)},
                   {"bytes", e.bytes},
                   {"file", checkpoint.shard_path(e.shard)},
                   {"offset", e.offset}});
  }
  return out;
}

Json to_json_report(const Checkpoint& checkpoint, const Inspected& m) {
  const Inventory& inv = m.inventory;
  Json out;
  out["path"] = checkpoint.path();
  out["config"] = Json::parse(to_json(m.config));
  if (!m.config.draft_note.empty()) out["draft_note"] = m.config.draft_note;
  for (const LayerPlan& layer : m.plan.layers) {
    out["layers"].push_back({{"attention", attention_kind_name(layer.attention)},
                             {"ratio", layer.ratio},
                             {"router", router_kind_name(layer.router)}});
  }
  out["parameters"] = inv.parameters;
  out["active_parameters"] = inv.active_parameters;
  out["mtp_parameters"] = inv.mtp_parameters;
  out["files"] = checkpoint.shard_count();
  out["tensor_count"] = inv.tensors;
  out["payload_bytes"] = inv.payload_bytes;
  for (const auto& [dtype, total] : inv.by_dtype) {
    out["dtypes"][std::string(dtype_name(dtype))] = {{"tensors", total.tensors},
                                                     {"bytes", total.bytes}};
  }
  for (const auto& [format, count] : inv.expert_formats) {
    out["expert_formats"][std::string(format_info(format).name)] = count;
  }
  out["without_data"] = inv.without_data;
  out["missing"] = inv.missing;
  out["mismatched"] = inv.mismatched;
  out["unexpected"] = inv.unexpected;
  out["unused"] = inv.unused;
  return out;
}

Json plan_json(const MemoryPlan& plan) {
  Json regions = Json::array();
  for (const MemoryPlan::Region& r : plan.regions) {
    regions.push_back({{"name", r.name}, {"layers", r.layers}, {"bytes", r.bytes}});
  }
  return {{"device", plan.device},
          {"weights", plan.weights},
          {"checkpoint", plan.checkpoint},
          {"activations", plan.activations},
          {"cache", plan.cache},
          {"workspace", plan.workspace},
          {"available", plan.available},
          {"fits", plan.fits()},
          {"context", plan.context},
          {"max_sequences", plan.max_sequences},
          {"cache_rows", plan.cache_rows},
          {"cache_per_sequence", plan.cache_per_sequence},
          {"cache_per_token", plan.cache_per_token},
          {"regions", std::move(regions)}};
}

// Per op: who runs it. "fallback" is a fused op made of the backend's own leaves.
Json ops_json(const Backend& backend) {
  Json ops = Json::array();
  for (size_t i = 0; i < op_list().size(); ++i) {
    ops.push_back({{"op", op_list()[i].name},
                   {"kind", op_list()[i].fused ? "fused" : "leaf"},
                   {"implementation", op_impl(backend.ops(), i)}});
  }
  return {{"device", backend.describe()}, {"ops", std::move(ops)}};
}

void print_ops(const Json& report) {
  std::printf("\nops of %s\n", report["device"].get<std::string>().c_str());
  for (const Json& op : report["ops"]) {
    std::printf("  %-16s %-6s %s\n", op["op"].get<std::string>().c_str(),
                op["kind"].get<std::string>().c_str(),
                op["implementation"].get<std::string>().c_str());
  }
}

Result<bool> inspect(const Options& o) {
  Inspected m;
  DSV4_ASSIGN(m.config, load_config(o.model));
  SafetensorsOptions headers;
  headers.allow_header_only = true;
  DSV4_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(o.model, headers));
  m.plan = make_plan(m.config);
  m.inventory = take_inventory(checkpoint, m.config, m.plan);

  MemoryPlan memory;
  if (o.plan) {
    EngineOptions options;
    options.model_dir = o.model;
    options.device = o.device;
    options.cache_rows = o.cache_rows;
    options.context = o.context;
    options.max_sequences = o.sequences;
    DSV4_ASSIGN(memory, Engine::plan(options));
  }
  Json ops;
  if (o.ops) {
    DSV4_ASSIGN(const auto backend, make_backend(o.device));
    ops = ops_json(*backend);
  }
  if (o.json) {
    Json out = to_json_report(checkpoint, m);
    if (o.tensors) out["tensors"] = tensors_json(checkpoint);
    if (o.plan) out["plan"] = plan_json(memory);
    if (o.ops) out["backend"] = std::move(ops);
    std::printf("%s\n", out.dump(1).c_str());
    return m.inventory.complete();
  }
  print_summary(checkpoint, m);
  if (o.plan) std::printf("\n%s", to_text(memory).c_str());
  if (o.ops) print_ops(ops);
  if (o.tensors) {
    std::printf("\n");
    for (const TensorEntry& e : checkpoint.entries()) {
      std::printf("%-60s %-8s %-20s %s\n", e.name.c_str(), std::string(dtype_name(e.dtype)).c_str(),
                  to_string(e.shape).c_str(), grouped(e.bytes).c_str());
    }
  }
  return m.inventory.complete();
}

}  // namespace

void add_inspect(Command app, int& exit_code) {
  auto o = std::make_shared<Options>();
  Command cmd = app.subcommand("inspect", "What a checkpoint is: config, sizes, tensors, memory");
  cmd.option("-m,--model", o->model, "Folder of a checkpoint; copies of the headers are enough")
      .required();
  cmd.flag("--tensors", o->tensors, "List every tensor");
  cmd.flag("--plan", o->plan, "The memory that running it takes");
  cmd.flag("--ops", o->ops, "Which implementation runs each op");
  cmd.option("--ctx", o->context, "Longest sequence for --plan");
  cmd.option("--sequences", o->sequences, "Sequences at one time for --plan")
      .positive()
      .show_default();
  cmd.option("--device", o->device, "Backend for --plan and --ops").show_default();
  add_cache_rows(cmd, o->cache_rows);
  cmd.flag("--json", o->json, "Everything as one JSON object");
  cmd.footer(
      "Reads headers only. The exit code is 1 when a tensor of the config is missing or has "
      "another\n"
      "dtype or shape.\n\nExamples:\n"
      "  dsv4 inspect -m DeepSeek-V4-Flash\n"
      "  dsv4 inspect -m DeepSeek-V4-Flash --plan --ctx 131072 --sequences 4");
  cmd.run([o, &exit_code] {
    const Result<bool> complete = inspect(*o);
    if (!complete.ok())
      exit_code = fail(complete.status());
    else
      exit_code = *complete ? kExitOk : kExitFailed;
  });
}

}  // namespace dsv4::apps
