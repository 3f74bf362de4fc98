#include <csignal>
#include <cstdio>
#include <optional>

#include "command.h"

namespace dsv4::apps {

int fail(const Status& status) {
  std::fprintf(stderr, "dsv4: %s\n", status.message().c_str());
  return status.code() == Code::kCancelled ? kExitInterrupted : kExitFailed;
}

Option add_cache_rows(Command command, std::string& cache_rows) {
  return command
      .option("--cache-rows", cache_rows,
              "Keys and values in the cache: fp8 or bf16, the same values in 57 % of the memory or ready to use; "
              "auto = what is fastest on the device")
      .one_of({"auto", "fp8", "bf16"})
      .show_default();
}

}  // namespace dsv4::apps

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file-size limit is an error of write(), not the end
  int exit_code = dsv4::apps::kExitOk;
  const std::optional<int> ended = dsv4::apps::read_command_line(
      argc, argv, "dsv4: native inference for the DeepSeek-V4 family", dsv4::apps::kExitUsage,
      [&exit_code](dsv4::apps::Command app) {
        app.require_subcommand();
        for (const auto add :
             {dsv4::apps::add_run, dsv4::apps::add_chat, dsv4::apps::add_serve,
              dsv4::apps::add_logits, dsv4::apps::add_verify, dsv4::apps::add_eval,
              dsv4::apps::add_encode, dsv4::apps::add_parse, dsv4::apps::add_tokenize,
              dsv4::apps::add_inspect, dsv4::apps::add_quantize, dsv4::apps::add_synth,
              dsv4::apps::add_bench, dsv4::apps::add_version}) {
          add(app, exit_code);
        }
      });
  if (ended) return *ended;
  // A full disk or a closed pipe behind standard output: the answer is incomplete.
  const bool written = std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
  if (!written && exit_code == dsv4::apps::kExitOk) {
    return dsv4::apps::fail(
        {dsv4::Code::kIo, "standard output: cannot be written; is the disk full?"});
  }
  return exit_code;
}
