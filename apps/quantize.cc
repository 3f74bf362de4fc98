// dsv4 quantize: a checkpoint in another weight format.
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "command.h"
#include "convert/nvfp4.h"
#include "progress.h"

namespace dsv4::apps {
namespace {

struct Options {
  std::string model, format = "nvfp4", out;
  bool json = false;
};

Status quantize(const Options& o) {
  DSV4_ASSIGN(const Nvfp4Report r, convert_to_nvfp4(o.model, o.out, terminal_progress()));
  if (o.json) {
    const nlohmann::ordered_json report = {{"cast_tensors", r.cast_tensors},
                                           {"blocks", r.blocks},
                                           {"rounded_blocks", r.rounded_blocks},
                                           {"kept_tensors", r.kept_tensors},
                                           {"payload_bytes", r.payload_bytes}};
    std::printf("%s\n", report.dump().c_str());
    return {};
  }
  std::printf("%s: %lld expert matrices cast, %lld tensors kept, %llu bytes\n", o.out.c_str(),
              static_cast<long long>(r.cast_tensors), static_cast<long long>(r.kept_tensors),
              static_cast<unsigned long long>(r.payload_bytes));
  std::printf("%lld of %lld blocks could not be cast exactly and were rounded again\n",
              static_cast<long long>(r.rounded_blocks), static_cast<long long>(r.blocks));
  return {};
}

}  // namespace

void add_quantize(Command app, int& exit_code) {
  auto o = std::make_shared<Options>();
  Command cmd = app.subcommand("quantize", "Cast the experts of a checkpoint to another format");
  cmd.option("-m,--model", o->model, "Folder of a native checkpoint (MXFP4 experts)").required();
  cmd.option("--to", o->format, "nvfp4: the layout of the published ModelOpt checkpoints")
      .one_of({"nvfp4"})
      .show_default();
  cmd.option("-o,--out", o->out, "Folder to write; it must not hold a checkpoint").required();
  cmd.flag("--json", o->json, "The report as JSON");
  cmd.footer(
      "The cast keeps every weight's value: E2M1 codes stay, a block's power-of-two scale becomes "
      "an\n"
      "E4M3 scale times one FP32 per tensor. Blocks whose scale is too far below the largest of "
      "their\n"
      "tensor are rounded again; the report counts them. MTP experts and all else are copied.\n\n"
      "Example:\n  dsv4 quantize -m DeepSeek-V4-Flash --to nvfp4 -o DeepSeek-V4-Flash-NVFP4");
  cmd.run([o, &exit_code] {
    const Status status = quantize(*o);
    exit_code = status.ok() ? kExitOk : fail(status);
  });
}

}  // namespace dsv4::apps
