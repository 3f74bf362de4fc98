#include <cstdio>

#include "command.h"

namespace dsv4::apps {

void add_version(CLI::App& app, int& exit_code) {
  auto* cmd = app.add_subcommand("version", "What was built in");
  cmd->callback([&exit_code] {
    std::printf("dsv4 0.1.0\n");
    exit_code = kExitOk;
  });
}

}  // namespace dsv4::apps
