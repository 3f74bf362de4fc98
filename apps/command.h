// A subcommand of the one binary: a file per subcommand, each adds itself to the parser and runs.
#pragma once

#include <CLI/CLI.hpp>

#include "dsv4/status.h"

namespace dsv4::apps {

// Exit codes of the program.
enum ExitCode { kExitOk = 0, kExitFailed = 1, kExitUsage = 2, kExitInterrupted = 130 };

// Each adds its subcommand to `app`; when it was chosen, `exit_code` receives the outcome after the
// command ran from its CLI callback. A Status that is not ok is printed by fail().
void add_run(CLI::App& app, int& exit_code);
void add_chat(CLI::App& app, int& exit_code);
void add_serve(CLI::App& app, int& exit_code);
void add_logits(CLI::App& app, int& exit_code);
void add_verify(CLI::App& app, int& exit_code);
void add_tokenize(CLI::App& app, int& exit_code);
void add_encode(CLI::App& app, int& exit_code);
void add_parse(CLI::App& app, int& exit_code);
void add_eval(CLI::App& app, int& exit_code);
void add_inspect(CLI::App& app, int& exit_code);
void add_quantize(CLI::App& app, int& exit_code);
void add_synth(CLI::App& app, int& exit_code);
void add_bench(CLI::App& app, int& exit_code);
void add_bench_batch(CLI::App& bench, int& exit_code);  // of bench
void add_bench_serve(CLI::App& bench, int& exit_code);  // of bench
void add_version(CLI::App& app, int& exit_code);

// One line on standard error, "dsv4: ..."; returns the exit code for it.
int fail(const Status& status);

}  // namespace dsv4::apps
