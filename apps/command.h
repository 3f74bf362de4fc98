// A subcommand of the one binary: a file per subcommand, each adds itself to the parser and runs.
#pragma once

#include <string>

#include "command_line.h"
#include "dsv4/status.h"

namespace dsv4::apps {

// Exit codes of the program.
enum ExitCode { kExitOk = 0, kExitFailed = 1, kExitUsage = 2, kExitInterrupted = 130 };

// Each adds its subcommand to `app`; when it was chosen, `exit_code` receives the outcome after the
// command ran. A Status that is not ok is printed by fail().
void add_run(Command app, int& exit_code);
void add_chat(Command app, int& exit_code);
void add_serve(Command app, int& exit_code);
void add_logits(Command app, int& exit_code);
void add_verify(Command app, int& exit_code);
void add_tokenize(Command app, int& exit_code);
void add_encode(Command app, int& exit_code);
void add_parse(Command app, int& exit_code);
void add_eval(Command app, int& exit_code);
void add_inspect(Command app, int& exit_code);
void add_quantize(Command app, int& exit_code);
void add_synth(Command app, int& exit_code);
void add_bench(Command app, int& exit_code);
void add_bench_batch(Command bench, int& exit_code);  // of bench
void add_bench_serve(Command bench, int& exit_code);  // of bench
void add_version(Command app, int& exit_code);

// --cache-rows: how keys and values lie in the cache, of every command that makes one.
Option add_cache_rows(Command command, std::string& cache_rows);

// One line on standard error, "dsv4: ..."; returns the exit code for it.
int fail(const Status& status);

}  // namespace dsv4::apps
