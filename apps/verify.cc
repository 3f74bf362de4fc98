// dsv4 verify: is this installation computing the model?
#include "api/verify.h"

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "command.h"
#include "progress.h"

namespace dsv4::apps {
namespace {

struct Options {
  std::string model, golden, device = "auto", cache_rows = "auto";
  double cosine = 0.0, agreement = 0.0;
  bool json = false;
};

nlohmann::ordered_json phase_json(const LayerPhase& p) {
  return {{"mean_cosine", p.mean_cosine}, {"median_error", p.median_error}, {"max_error", p.max_error}};
}

nlohmann::ordered_json phase_json(const EndToEndPhase& p) {
  return {{"mean_cosine", p.mean_cosine}, {"argmax_agreement", p.argmax_agreement}};
}

void print_json(const VerifyReport& r) {
  nlohmann::ordered_json out;
  out["backend"] = r.backend;
  out["prompt_tokens"] = r.prompt_tokens;
  out["decode_tokens"] = r.decode_tokens;
  for (const LayerReport& layer : r.layers) {
    nlohmann::ordered_json row{{"layer", layer.layer},
                               {"kind", layer.kind},
                               {"prefill", phase_json(layer.prefill)},
                               {"decode", phase_json(layer.decode)}};
    if (layer.selection_agreement) row["selection_agreement"] = *layer.selection_agreement;
    out["layers"].push_back(std::move(row));
  }
  if (r.mtp_cosine) out["mtp_cosine"] = *r.mtp_cosine;
  out["end_to_end"] = {{"prefill", phase_json(r.prefill)}, {"decode", phase_json(r.decode)}};
  out["limits"] = {{"layer_cosine", r.limits.layer_cosine},
                   {"prefill_error", r.limits.prefill_error},
                   {"decode_error", r.limits.decode_error},
                   {"mtp_cosine", r.limits.mtp_cosine},
                   {"end_to_end_cosine", r.limits.end_to_end_cosine},
                   {"end_to_end_agreement", r.limits.end_to_end_agreement}};
  out["failures"] = r.failures;
  out["passed"] = r.passed();
  std::printf("%s\n", out.dump(1).c_str());
}

void print_table(const VerifyReport& r) {
  std::printf("backend: %s\n%lld prompt tokens, %lld decode tokens\n\n", r.backend.c_str(),
              static_cast<long long>(r.prompt_tokens), static_cast<long long>(r.decode_tokens));
  std::printf("one layer at a time, fed the golden streams (error relative to the layer's own change)\n");
  std::printf("%-10s | %-11s %-9s %-9s | %-11s %-9s %-9s | %s\n", "layer", "prefill cos", "median e", "max e",
              "decode cos", "median e", "max e", "same selection");
  for (const LayerReport& layer : r.layers) {
    std::printf("%3lld %-6s | %-11.7f %-9.5f %-9.5f | %-11.7f %-9.5f %-9.5f | ",
                static_cast<long long>(layer.layer), layer.kind.c_str(), layer.prefill.mean_cosine,
                layer.prefill.median_error, layer.prefill.max_error, layer.decode.mean_cosine,
                layer.decode.median_error, layer.decode.max_error);
    if (layer.selection_agreement) {
      std::printf("%.1f %%\n", *layer.selection_agreement * 100.0);
    } else {
      std::printf("-\n");
    }
  }
  const VerifyLimits& l = r.limits;
  std::printf("%-10s | >= %.5f  <= %-6.3f           | >= %.5f  <= %.3f\n", "limit", l.layer_cosine,
              l.prefill_error, l.layer_cosine, l.decode_error);
  if (r.mtp_cosine) std::printf("MTP logits cosine %.7f (limit %.4f)\n", *r.mtp_cosine, l.mtp_cosine);
  std::printf("\nend to end: logits          mean cosine   argmax agreement\n");
  std::printf("  prefill                   %.6f      %.4f\n", r.prefill.mean_cosine, r.prefill.argmax_agreement);
  std::printf("  decode                    %.6f      %.4f\n", r.decode.mean_cosine, r.decode.argmax_agreement);
  std::printf("  limit                     %.6f      %.4f\n\n", l.end_to_end_cosine, l.end_to_end_agreement);
  for (const std::string& failure : r.failures) std::printf("outside its limit: %s\n", failure.c_str());
  std::printf(r.passed() ? "PASS: this installation computes the model as published\n"
                         : "FAIL: do not trust this installation's answers; please report the table above\n");
}

Status run(const Options& o, int& exit_code) {
  const ProgressSink progress = terminal_progress();
  DSV4_ASSIGN(const LoadedModel loaded, load_model(o.model, o.device, progress, o.cache_rows));
  VerifyLimits limits = default_limits(loaded.backend->exact_rounding());
  if (o.cosine > 0.0) limits.end_to_end_cosine = o.cosine;
  if (o.agreement > 0.0) limits.end_to_end_agreement = o.agreement;
  DSV4_ASSIGN(const VerifyReport report, verify_golden(loaded, o.golden, limits, progress));
  o.json ? print_json(report) : print_table(report);
  exit_code = report.passed() ? kExitOk : kExitFailed;
  return {};
}

}  // namespace

void add_verify(Command app, int& exit_code) {
  Command cmd = app.subcommand(
      "verify", "Compare this installation with outputs of the published model code");
  auto options = std::make_shared<Options>();
  cmd.option("-m,--model", options->model,
             "Folder of the small checkpoint that belongs to the golden file")
      .required();
  cmd.option("--golden", options->golden, "golden.safetensors: tokens, residual streams and logits")
      .required();
  cmd.option("--device", options->device,
             "Backend to verify: auto, or a name that `dsv4 version` lists");
  add_cache_rows(cmd, options->cache_rows);
  cmd.option("--end-to-end-cosine", options->cosine,
             "Stricter or looser limit for the mean cosine of logits");
  cmd.option("--end-to-end-agreement", options->agreement,
             "The same for the argmax agreement, 0..1");
  cmd.flag("--json", options->json, "One JSON object instead of the table");
  cmd.footer(
      "Runs every layer from golden inputs, the MTP block, then the whole model, prefill and "
      "decode.\n"
      "Exit code 0 when everything is within its limit, 1 otherwise.\n\n"
      "  dsv4 verify -m tiny-flash --golden tiny-flash/golden.safetensors --device reference");
  cmd.run([options, &exit_code] {
    const Status status = run(*options, exit_code);
    if (!status.ok()) exit_code = fail(status);
  });
}

}  // namespace dsv4::apps
