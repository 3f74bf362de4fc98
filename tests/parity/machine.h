// A backend with what it takes to call its ops.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "api/backends.h"
#include "bench/op_case.h"
#include "dsv4/engine.h"
#include "ops/context.h"

namespace dsv4::parity {

struct Machine {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<Workspace> workspace;

  static Result<Machine> make(std::string_view name) {
    Machine m;
    DSV4_ASSIGN(m.backend, make_backend(name));
    DSV4_ASSIGN(m.stream, m.backend->make_stream());
    m.workspace = std::make_unique<Workspace>(*m.backend);
    return m;
  }

  // What the case leaves when it runs in these steps through this table.
  Result<std::vector<bench::HostArray>> run(const bench::OpCase& c, const OpTable& table,
                                            const std::vector<bench::Step>& steps) const {
    DSV4_ASSIGN(const auto bound, bench::Bound::make(c, *backend, *stream));
    return run(*bound, table, steps);
  }
  Result<std::vector<bench::HostArray>> run(const bench::OpCase& c) const {
    return run(c, backend->ops(), {c.whole});
  }
  // The same on a case that is already in the backend's memory, once more.
  Result<std::vector<bench::HostArray>> run(bench::Bound& bound, const OpTable& table,
                                            const std::vector<bench::Step>& steps) const {
    DSV4_TRY(bound.reset());
    OpContext ctx{*backend, table, *stream, *workspace};
    for (const bench::Step& step : steps) {
      if (step.rows > 0) DSV4_TRY(bound.op_case().call(ctx, bound, step));
    }
    DSV4_TRY(backend->synchronize(*stream));
    return bound.download();
  }
};

// Backends under test: all, or the one in DSV4_TEST_BACKEND.
inline std::vector<std::string> backends_under_test() {
  const char* only = std::getenv("DSV4_TEST_BACKEND");
  std::vector<std::string> names;
  for (const std::string_view name : backend_names()) {
    if (!only || name == only) names.emplace_back(name);
  }
  if (only && names.empty()) names.emplace_back(only);  // fails with the registry's message
  return names;
}

// Ops whose bound is relative to sum |x||w|.
inline bool needs_magnitude(const bench::OpCase& c) {
  return c.op == "linear" || c.op == "linear_stack" || c.op == "grouped_linear";
}

}  // namespace dsv4::parity
