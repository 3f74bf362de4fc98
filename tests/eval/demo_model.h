// The shipped model and first items of its held-out sets, for tests from the root of the checkout.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "eval/evaluate.h"

namespace dsv4::eval {

inline constexpr const char* kDemo = "models/demo";

struct Demo {
  LoadedModel loaded;
  Tokenizer tokenizer;

  static Result<Demo> load() {
    DSV4_ASSIGN(Tokenizer tokenizer, Tokenizer::load(std::string(kDemo) + "/tokenizer.json"));
    DSV4_ASSIGN(LoadedModel loaded, load_model(kDemo, "cpu", {}));
    return Demo{std::move(loaded), std::move(tokenizer)};
  }

  // The first `limit` items of one set on `ops`.
  Result<Report> run(const std::string& task, int64_t limit, const OpTable& ops) const {
    DSV4_ASSIGN(const std::vector<Task> tasks,
                load_suite(std::string(kDemo) + "/eval", {.tasks = {task}, .limit = limit}));
    return evaluate(loaded, ops, tokenizer, tasks, {}, {});
  }

  // One figure; NaN, and a failed test, where it could not be had.
  double figure(const std::string& task, const std::string& name, int64_t limit,
                const OpTable& ops) const {
    const auto report = run(task, limit, ops);
    EXPECT_TRUE(report.ok()) << report.status().message();
    const Figure* found = report.ok() ? find_figure(*report, task + "." + name) : nullptr;
    EXPECT_NE(found, nullptr) << task << "." << name;
    return found ? found->value : std::nan("");
  }
};

}  // namespace dsv4::eval
