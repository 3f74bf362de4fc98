#include <csignal>
#include <cstdio>

#include "command.h"

namespace dsv4::apps {

int fail(const Status& status) {
  std::fprintf(stderr, "dsv4: %s\n", status.message().c_str());
  return status.code() == Code::kCancelled ? kExitInterrupted : kExitFailed;
}

}  // namespace dsv4::apps

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file-size limit is an error of write(), not the end
  CLI::App app{"dsv4: native inference for the DeepSeek-V4 family"};
  app.require_subcommand(1);
  int exit_code = dsv4::apps::kExitOk;
  dsv4::apps::add_run(app, exit_code);
  dsv4::apps::add_chat(app, exit_code);
  dsv4::apps::add_serve(app, exit_code);
  dsv4::apps::add_logits(app, exit_code);
  dsv4::apps::add_verify(app, exit_code);
  dsv4::apps::add_eval(app, exit_code);
  dsv4::apps::add_encode(app, exit_code);
  dsv4::apps::add_parse(app, exit_code);
  dsv4::apps::add_tokenize(app, exit_code);
  dsv4::apps::add_inspect(app, exit_code);
  dsv4::apps::add_quantize(app, exit_code);
  dsv4::apps::add_synth(app, exit_code);
  dsv4::apps::add_bench(app, exit_code);
  dsv4::apps::add_version(app, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const int code = app.exit(e);
    return code == 0 ? 0 : dsv4::apps::kExitUsage;
  }
  // A full disk or a closed pipe behind standard output: the answer is incomplete.
  const bool written = std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
  if (!written && exit_code == dsv4::apps::kExitOk) {
    return dsv4::apps::fail(
        {dsv4::Code::kIo, "standard output: cannot be written; is the disk full?"});
  }
  return exit_code;
}
