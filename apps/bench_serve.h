// dsv4 bench serve, a part of `dsv4 bench`.
#pragma once

#include <CLI/CLI.hpp>

namespace dsv4::apps {

void add_bench_serve(CLI::App& bench, int& exit_code);

}  // namespace dsv4::apps
