// dsv4 version: what was built in, for reports.
#include <cstdio>
#include <string>

#include "api/backends.h"
#include "command.h"
#include "dsv4/engine.h"

namespace dsv4::apps {

void add_version(Command app, int& exit_code) {
  Command cmd = app.subcommand("version", "What was built in, and what works on this machine");
  cmd.run([&exit_code] {
    std::printf("dsv4 %s\n", DSV4_VERSION);
#if defined(__clang__)
    std::printf("compiler   clang %s\n", __clang_version__);
#else
    std::printf("compiler   g++ %s\n", __VERSION__);
#endif
    for (const std::string_view name : backend_names()) {
      const auto backend = make_backend(name);
      std::printf("device     %s\n",
                  backend.ok()
                      ? (*backend)->describe().c_str()
                      : (std::string(name) + ", not here: " + backend.status().message()).c_str());
    }
    exit_code = kExitOk;
  });
}

}  // namespace dsv4::apps
