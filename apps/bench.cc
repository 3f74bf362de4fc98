// dsv4 bench: single ops, decode and prefill, each against what the machine can do.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "api/backends.h"
#include "api/loaded_model.h"
#include "base/str.h"
#include "base/thread_pool.h"
#include "bench/model_bench.h"
#include "bench/ops_bench.h"
#include "bench/peak.h"
#include "bench/synthetic.h"
#include "command.h"
#include "convert/synth.h"
#include "progress.h"

namespace dsv4::apps {
namespace {

using nlohmann::ordered_json;

struct OpsFlags {
  std::string device = "auto", cache_rows = "auto", config = "flash", filter;
  std::vector<int64_t> rows = {1, 8, 64};
  bench::TimingOptions timing;
  bench::OpsOptions ops;
  bool json = false, no_reference = false;
};

struct ModelFlags {
  std::string model, synthetic, device = "auto", cache_rows = "auto";
  ConfigCut cut;
  bench::ModelBenchOptions bench;
  std::vector<int64_t> batches = {1};  // decode: measured one after the other
  bool json = false, no_fill = false;
};

// What the backend is held to, of its own device, or of this processor where its memory is the host's; then
// also with what memory is read between the things that are timed.
struct Ceilings {
  std::optional<bench::Peaks> peaks;
  std::unique_ptr<bench::ReadMeter> reads;
};

Result<Ceilings> ceilings_of(Backend& backend) {
  Ceilings c;
  DSV4_ASSIGN(const Buffer probe, backend.allocate(256));
  if (probe.memory() != MemoryKind::kHost) {
    DSV4_ASSIGN(c.peaks, bench::device_peaks(backend));
    return c;
  }
  DSV4_ASSIGN(const int threads, threads_from_environment());
  DSV4_ASSIGN(c.reads, bench::ReadMeter::make(threads));
  c.peaks = bench::measure_peaks(*c.reads);
  return c;
}

ordered_json machine_json(const Backend& backend, const std::optional<bench::Peaks>& peaks) {
  ordered_json j = {{"device", backend.name()}, {"describe", backend.describe()}, {"cache_rows", kv_format_name(backend.kv_format())}};
  if (peaks) {
    j["read_gb_per_s"] = peaks->read_bytes_per_s * 1e-9;
    if (peaks->best_read_bytes_per_s > 0) j["best_read_gb_per_s"] = peaks->best_read_bytes_per_s * 1e-9;
    j["fma_gflop_per_s"] = peaks->flops_per_s * 1e-9;
    if (peaks->bf16_flops_per_s > 0) j["bf16_dot_gflop_per_s"] = peaks->bf16_flops_per_s * 1e-9;
    j["peak_isa"] = peaks->isa;
    j["peak_threads"] = peaks->threads;
    j["last_level_cache_bytes"] = bench::last_level_cache();
  }
  return j;
}

void print_machine(const Backend& backend, const std::optional<bench::Peaks>& peaks) {
  std::printf("device  %s\n", backend.describe().c_str());
  std::printf("cache   rows in %s\n", std::string(kv_format_name(backend.kv_format())).c_str());
  if (peaks) {
    std::printf("peak    read %.2f GB/s", peaks->read_bytes_per_s * 1e-9);
    if (peaks->best_read_bytes_per_s > 0) std::printf(" (at best %.2f)", peaks->best_read_bytes_per_s * 1e-9);
    if (peaks->threads > 0) std::printf(", FP32 FMA %.1f GFLOP/s", peaks->flops_per_s * 1e-9);
    if (peaks->bf16_flops_per_s > 0) std::printf(", BF16 dot %.1f GFLOP/s", peaks->bf16_flops_per_s * 1e-9);
    if (peaks->threads > 0) std::printf(" (%d threads, %s)", peaks->threads, peaks->isa.c_str());
    else std::printf(" (%s)", peaks->isa.c_str());
    std::printf(", measured now\n");
  }
  std::printf("\n");
}

// "flash", "pro", or a folder with a config.json.
Result<ModelConfig> any_config(const std::string& name) {
  if (name == "flash" || name == "pro") return builtin_config(name);
  return load_config(name);
}

ordered_json to_json(const bench::OpTiming& t) {
  ordered_json j = {{"op", t.op},
                    {"case", t.name},
                    {"impl", t.impl},
                    {"rows", t.rows},
                    {"us", t.us},
                    {"us_p90", t.us_p90},
                    {"us_min", t.us_min},
                    {"runs", t.runs},
                    {"weight_copies", t.copies},
                    {"weight_bytes", t.cost.weight_bytes},
                    {"other_bytes", t.cost.other_bytes},
                    {"flops", t.cost.flops},
                    {"gb_per_s", t.bytes_per_s * 1e-9},
                    {"gflop_per_s", t.flops_per_s * 1e-9}};
  if (t.read_bytes_per_s > 0.0) j["read_gb_per_s"] = t.read_bytes_per_s * 1e-9;
  if (t.roofline > 0.0) {
    j["roofline"] = t.roofline;
    j["limit"] = t.memory_bound ? "memory" : "arithmetic";
  }
  if (t.reference_us > 0.0) j["reference_us"] = t.reference_us;
  return j;
}

void print_op(const bench::OpTiming& t) {
  std::printf("%-14s %-40s %5lld %11.1f %8.2f ", t.op.c_str(), t.name.c_str(),
              static_cast<long long>(t.rows), t.us, t.bytes_per_s * 1e-9);
  if (t.read_bytes_per_s > 0.0)
    std::printf("%7.2f ", t.read_bytes_per_s * 1e-9);
  else
    std::printf("%7s ", "-");
  std::printf("%8.1f ", t.flops_per_s * 1e-9);
  if (t.roofline > 0.0)
    std::printf("%5.1f%% %-4s ", 100.0 * t.roofline, t.memory_bound ? "mem" : "flop");
  else
    std::printf("%6s %-4s ", "-", "");
  if (t.reference_us > 0.0)
    std::printf("%7.1fx ", t.reference_us / t.us);
  else
    std::printf("%8s ", "-");
  std::printf(" %s\n", t.impl.c_str());
  std::fflush(stdout);
}

Status run_ops(const OpsFlags& f) {
  DSV4_ASSIGN(const ModelConfig config, any_config(f.config));
  DSV4_ASSIGN(const auto backend, make_backend(f.device, f.cache_rows));
  DSV4_ASSIGN(const auto reference, make_backend("reference"));
  DSV4_ASSIGN(const Ceilings ceilings, ceilings_of(*backend));
  const std::optional<bench::Peaks>& peaks = ceilings.peaks;
  ordered_json json = {{"machine", machine_json(*backend, peaks)},
                       {"config", f.config},
                       {"ops", ordered_json::array()}};
  if (!f.json) {
    print_machine(*backend, peaks);
    std::printf("%-14s %-40s %5s %11s %8s %7s %8s %6s %-3s %8s  %s\n", "op", "case", "rows", "us",
                "GB/s", "read", "GFLOP/s", "peak", "", "vs ref", "impl");
  }
  const bool compare = !f.no_reference && backend->name() != "reference";
  for (const int64_t rows : f.rows) {
    for (const bench::CaseSpec& spec : bench::model_cases(config, rows, f.timing)) {
      if (spec.op.find(f.filter) == std::string::npos &&
          spec.name.find(f.filter) == std::string::npos)
        continue;
      const bench::OpCase c = spec.make();
      auto timing = bench::time_op(c, *backend, peaks ? &*peaks : nullptr, ceilings.reads.get(),
                                   compare ? reference.get() : nullptr, f.ops);
      if (!timing.ok()) return timing.status().with_context(cat(spec.op, " ", spec.name));
      if (f.json)
        json["ops"].push_back(to_json(*timing));
      else
        print_op(*timing);
    }
  }
  if (f.json) std::printf("%s\n", json.dump(1).c_str());
  return {};
}

void print_model(const bench::ModelBenchResult& r, const std::optional<bench::Peaks>& peaks,
                 bool decode) {
  const double seconds = r.ms_median * 1e-3;
  std::printf("%.2f tokens/s   %.2f ms per %s (p90 %.2f)\n", r.tokens_per_s, r.ms_median,
              decode ? "step" : "prompt", r.ms_p90);
  if (r.fill_tokens_per_s > 0.0)
    std::printf("context filled at %.1f tokens/s\n", r.fill_tokens_per_s);
  if (r.launches > 0)
    std::printf("%lld launches per step, from the copy of its batch to that of its tokens, replayed as one graph; %.0f us of the host's time before it waits\n",
                static_cast<long long>(r.launches), r.host_us);
  if (r.recorded_steps > 0)
    std::printf("%lld sizes of step recorded before the first in %.0f ms, for which %.1f MB of device memory went\n",
                static_cast<long long>(r.recorded_steps), r.warm_up_ms, static_cast<double>(r.warm_up_bytes) * 1e-6);
  std::printf("%.1f MB read per token: %.2f GB/s, %.1f GFLOP/s",
              static_cast<double>(r.bytes) * 1e-6 / static_cast<double>(r.tokens_per_step),
              static_cast<double>(r.bytes) * 1e-9 / seconds,
              static_cast<double>(r.flops) * 1e-9 / seconds);
  if (peaks) {
    std::printf(" = %.1f%% of the read bandwidth (%.2f), %.1f%% of the best rate of multiply-adds",
                100.0 * static_cast<double>(r.bytes) / seconds / peaks->read_bytes_per_s,
                peaks->read_bytes_per_s * 1e-9,
                100.0 * static_cast<double>(r.flops) / seconds / peaks->best_flops_per_s());
  }
  std::printf("\n\n%s, with marks between the ops: %.3f ms in all\n",
              r.ops_replayed ? "device time inside a replayed step"
              : decode       ? "time inside a step"
                             : "time inside a prompt",
              r.ops_ms);
  std::printf("%-14s %7s %11s %6s %10s %8s %8s  %s\n", "op", "calls", "ms", "time", "MB",
              "GB/s", "GFLOP/s", "impl");
  for (const bench::OpShare& s : r.ops) {
    const double ns = static_cast<double>(std::max<int64_t>(s.record.ns, 1));
    std::printf("%-14s %7lld %11.3f %5.1f%% %10.2f %8.2f %8.1f  %s\n", s.op.c_str(),
                static_cast<long long>(s.record.calls), ns * 1e-6,
                100.0 * ns * 1e-6 / std::max(r.ops_ms, 1e-6),
                static_cast<double>(s.record.bytes) * 1e-6,
                static_cast<double>(s.record.bytes) / ns, static_cast<double>(s.record.flops) / ns,
                s.impl.c_str());
  }
}

ordered_json model_json(const bench::ModelBenchResult& r,
                        const std::optional<bench::Peaks>& peaks) {
  const double seconds = r.ms_median * 1e-3;
  ordered_json j = {
      {"tokens_per_s", r.tokens_per_s},
      {"ms_median", r.ms_median},
      {"ms_p90", r.ms_p90},
      {"tokens_per_step", r.tokens_per_step},
      {"bytes_per_step", r.bytes},
      {"flops_per_step", r.flops},
      {"bytes_per_token", static_cast<double>(r.bytes) / static_cast<double>(r.tokens_per_step)},
      {"gb_per_s", static_cast<double>(r.bytes) * 1e-9 / seconds},
      {"gflop_per_s", static_cast<double>(r.flops) * 1e-9 / seconds}};
  if (peaks) {
    j["read_gb_per_s"] = peaks->read_bytes_per_s * 1e-9;
    j["share_of_read_bandwidth"] = static_cast<double>(r.bytes) / seconds / peaks->read_bytes_per_s;
    j["share_of_flop_rate"] = static_cast<double>(r.flops) / seconds / peaks->best_flops_per_s();
  }
  if (r.launches > 0) {
    j["launches_per_step"] = r.launches;
    j["host_us_per_step"] = r.host_us;
    j["recorded_steps"] = r.recorded_steps;
    j["warm_up_ms"] = r.warm_up_ms;
  }
  if (r.fill_tokens_per_s > 0.0) j["context_tokens_per_s"] = r.fill_tokens_per_s;
  j["ops_us"] = r.ops_ms * 1e3;
  j["ops_replayed"] = r.ops_replayed;
  j["ops"] = ordered_json::array();
  for (const bench::OpShare& s : r.ops) {
    j["ops"].push_back({{"op", s.op},
                        {"impl", s.impl},
                        {"calls", s.record.calls},
                        {"us", static_cast<double>(s.record.ns) * 1e-3},
                        {"bytes", s.record.bytes},
                        {"flops", s.record.flops}});
  }
  return j;
}

Status run_model(ModelFlags f, bool decode) {
  f.bench.fill = !f.no_fill;
  const ProgressSink progress = f.json ? ProgressSink() : terminal_progress();
  std::unique_ptr<Backend> backend;  // outlives the weights in its memory
  LoadedModel loaded;
  bench::SyntheticModel synthetic;
  const Model* model = nullptr;
  if (f.synthetic.empty()) {
    DSV4_ASSIGN(loaded, load_model(f.model, f.device, progress, f.cache_rows));
    model = loaded.model.get();
    backend = std::move(loaded.backend);
  } else {
    DSV4_ASSIGN(ModelConfig whole, any_config(f.synthetic));
    whole.draft = DraftKind::kNone;  // an MTP block is as large as a layer, and is not run here
    DSV4_ASSIGN(const ModelConfig config, cut_config(whole, f.cut));
    DSV4_ASSIGN(backend, make_backend(f.device, f.cache_rows));
    DSV4_ASSIGN(synthetic, bench::make_synthetic(config, *backend, 1, progress));
    model = &synthetic.model;
  }
  DSV4_ASSIGN(const Ceilings ceilings, ceilings_of(*backend));
  std::optional<bench::Peaks> peaks = ceilings.peaks;
  // A model in the cache would be driven out of it.
  const bool cold = static_cast<int64_t>(model->weights.bytes) > 2 * bench::last_level_cache();
  if (ceilings.reads && cold) f.bench.between = [&ceilings] { ceilings.reads->sample(4); };
  const std::string what = f.synthetic.empty() ? f.model : cat("synthetic ", f.synthetic);
  const ModelConfig& c = model->config;
  if (!f.json) {
    print_machine(*backend, peaks);
    std::printf("model   %s: %lld layers, %lld experts, %.2f GB packed\n", what.c_str(),
                static_cast<long long>(c.num_hidden_layers),
                static_cast<long long>(c.n_routed_experts),
                static_cast<double>(model->weights.bytes) * 1e-9);
  }
  ordered_json results = ordered_json::array();
  for (const int64_t batch : f.batches) {
    f.bench.batch = batch;
    if (ceilings.reads) ceilings.reads->restart();
    DSV4_ASSIGN(const bench::ModelBenchResult result,
                decode ? bench::bench_decode(*model, *backend, f.bench, progress)
                       : bench::bench_prefill(*model, *backend, f.bench, progress));
    if (ceilings.reads && cold) peaks->read_bytes_per_s = ceilings.reads->median();  // that of these very steps
    if (f.json) {
      results.push_back(model_json(result, peaks));
      results.back()["batch"] = batch;
      continue;
    }
    if (decode) {
      std::printf("\ndecode  batch %lld, context %lld, %lld steps\n\n", static_cast<long long>(batch),
                  static_cast<long long>(f.bench.context), static_cast<long long>(f.bench.tokens));
    } else {
      std::printf("prefill %lld tokens in chunks of %lld\n\n", static_cast<long long>(f.bench.tokens),
                  static_cast<long long>(f.bench.chunk));
    }
    print_model(result, peaks, decode);
    std::fflush(stdout);
  }
  if (f.json) {
    const ordered_json j = {{"machine", machine_json(*backend, ceilings.peaks)},
                            {"mode", decode ? "decode" : "prefill"},
                            {"model", what},
                            {"layers", c.num_hidden_layers},
                            {"experts", c.n_routed_experts},
                            {"context", f.bench.context},
                            {"tokens", f.bench.tokens},
                            {"chunk", f.bench.chunk},
                            {"weight_bytes_owned", model->weights.bytes},
                            {"results", results}};
    std::printf("%s\n", j.dump(1).c_str());
  }
  return {};
}

void add_ops(Command bench, int& exit_code) {
  auto f = std::make_shared<OpsFlags>();
  Command cmd = bench.subcommand("ops", "Every op at the shapes of a model");
  cmd.option("--device", f->device, "Backend").show_default();
  add_cache_rows(cmd, f->cache_rows);
  cmd.option("--config", f->config, "Shapes: flash, pro, or a folder with a config.json")
      .show_default();
  cmd.option("--rows", f->rows,
             "Rows at once; up to 8 are decoding sequences, more are a chunk of a prompt")
      .delimiter(',')
      .range(1, 65536)
      .show_default();
  cmd.option("--filter", f->filter, "Only ops or cases whose name has this in it");
  cmd.option("--ctx", f->timing.context, "Tokens before the timed rows")
      .range(0, 1 << 20)
      .show_default();
  cmd.option("--experts", f->timing.experts,
             "Experts of the MoE cases at most, 13 MB each for Flash")
      .range(6, 1024)
      .show_default();
  cmd.option("--seconds", f->ops.seconds, "Time per case").real_range(0.01, 60).show_default();
  cmd.flag("--no-reference", f->no_reference,
           "Leave the comparison with the reference backend out");
  cmd.flag("--json", f->json, "JSON on standard output");
  cmd.footer(
      "Times are medians of a call: on a GPU the device's time of a graph of calls, over their number.\n"
      "Example: dsv4 bench ops --config flash --rows 1,8 --filter linear");
  cmd.run([f, &exit_code] {
    const Status status = run_ops(*f);
    exit_code = status.ok() ? kExitOk : fail(status);
  });
}

void add_model(Command bench, bool decode, int& exit_code) {
  auto f = std::make_shared<ModelFlags>();
  Command cmd = decode
                    ? bench.subcommand("decode", "One token per step for each sequence of a batch")
                    : bench.subcommand("prefill", "A prompt, in chunks");
  Command which = cmd.one_of_options("Model");
  which.option("-m,--model", f->model, "Folder of the checkpoint");
  which.option("--synthetic", f->synthetic,
               "Random weights in memory: flash, pro, or a folder with a config.json");
  cmd.option("--layers", f->cut.layers, "With --synthetic: the first layers only").range(1, 4096);
  cmd.option("--experts", f->cut.experts, "With --synthetic: fewer routed experts").range(1, 16384);
  cmd.option("--device", f->device, "Backend").show_default();
  add_cache_rows(cmd, f->cache_rows);
  if (decode) {
    cmd.option("--ctx", f->bench.context, "Tokens in the cache before the first step")
        .range(0, 1 << 20)
        .show_default();
    cmd.option("--tokens", f->bench.tokens, "Timed steps").range(1, 1 << 16).show_default();
    cmd.option("--batch", f->batches, "Sequences; several numbers are measured in turn")
        .delimiter(',')
        .range(1, 4096)
        .show_default();
    cmd.flag("--no-fill", f->no_fill,
             "Leave the context zero instead of running it through the model");
  } else {
    f->bench.tokens = 512;
    cmd.option("--tokens", f->bench.tokens, "Length of the prompt")
        .range(1, 1 << 20)
        .show_default();
    cmd.option("--repeats", f->bench.repeats, "Timed runs; 0 times the first run")
        .range(0, 1000)
        .show_default();
  }
  cmd.option("--chunk", f->bench.chunk, "Rows of a prefill batch at most")
      .range(1, 1 << 16)
      .show_default();
  cmd.flag("--json", f->json, "JSON on standard output");
  cmd.footer(
      decode
          ? "The table of ops comes from steps of their own: on a GPU device time inside a replayed step.\n"
            "Example: dsv4 bench decode --synthetic flash --layers 4 --ctx 512"
          : "Example: dsv4 bench prefill --synthetic flash --layers 2 --experts 64 --tokens 512");
  cmd.run([f, decode, &exit_code] {
    const Status status = run_model(*f, decode);
    exit_code = status.ok() ? kExitOk : fail(status);
  });
}

}  // namespace

void add_bench(Command app, int& exit_code) {
  Command bench = app.subcommand("bench", "Time ops, decode, prefill or a server");
  bench.require_subcommand();
  add_ops(bench, exit_code);
  add_model(bench, true, exit_code);
  add_model(bench, false, exit_code);
  add_bench_batch(bench, exit_code);
  add_bench_serve(bench, exit_code);
}

}  // namespace dsv4::apps
