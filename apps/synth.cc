// dsv4 synth: a checkpoint of random weights.
#include "convert/synth.h"

#include <cstdio>
#include <memory>
#include <string>

#include "command.h"
#include "model/config.h"
#include "progress.h"

namespace dsv4::apps {
namespace {

struct Options {
  std::string config = "flash", out;
  ConfigCut cut;
  SynthOptions synth;
};

Result<ModelConfig> read_config(const std::string& name) {
  if (name == "flash" || name == "pro") return builtin_config(name);
  return load_config_file(name);
}

Status synth(const Options& o) {
  DSV4_ASSIGN(ModelConfig config, read_config(o.config));
  DSV4_ASSIGN(config, cut_config(std::move(config), o.cut));
  DSV4_TRY(write_synthetic(config, o.synth, o.out, terminal_progress()));
  std::printf("%s: %lld layers, %lld experts, vocabulary %lld, seed %llu\n", o.out.c_str(),
              static_cast<long long>(config.num_hidden_layers),
              static_cast<long long>(config.n_routed_experts),
              static_cast<long long>(config.vocab_size),
              static_cast<unsigned long long>(o.synth.seed));
  return {};
}

}  // namespace

void add_synth(Command app, int& exit_code) {
  auto o = std::make_shared<Options>();
  Command cmd =
      app.subcommand("synth", "Write a checkpoint of random weights in the published layout");
  cmd.option("--config", o->config, "flash, pro, or a config.json").show_default();
  cmd.option("--layers", o->cut.layers,
             "Keep the first N main layers (and the MTP block): the first N entries of "
             "compress_ratios and its last. Flash has every kind of layer from N = 4");
  cmd.option("--experts", o->cut.experts, "Routed experts per layer instead of the config's");
  cmd.option("--vocab", o->cut.vocab, "Vocabulary instead of the config's");
  cmd.option("--seed", o->synth.seed, "Same seed, same bytes").show_default();
  cmd.option("--tokenizer", o->synth.tokenizer_path,
             "A tokenizer.json to copy; without it a byte-level one is made for the vocabulary");
  cmd.flag("--header-only", o->synth.header_only,
           "Files end after their headers: the shapes of the real models in a few megabytes, "
           "for dsv4 inspect");
  cmd.flag("--single,!--shards", o->synth.single_file,
           "One model.safetensors; --shards (the default) splits like the published files");
  cmd.option("-o,--out", o->out, "Folder to write; it must not hold a checkpoint").required();
  cmd.footer(
      "Weights are random, so the words of such a model mean nothing; sizes, layouts and speed are "
      "real.\n\nExamples:\n"
      "  dsv4 synth --config flash --layers 4 -o flash4          20 GB, each layer of full size\n"
      "  dsv4 synth --config flash --layers 6 --experts 8 --vocab 1024 -o small\n"
      "  dsv4 synth --config pro --header-only -o pro-headers && dsv4 inspect -m pro-headers");
  cmd.run([o, &exit_code] {
    const Status status = synth(*o);
    exit_code = status.ok() ? kExitOk : fail(status);
  });
}

}  // namespace dsv4::apps
