// Every backend of this build against the golden checkpoints, one layer at a time and end to end.
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "api/backends.h"
#include "api/verify.h"
#include "dsv4/engine.h"
#include "golden/shared_data.h"

namespace dsv4 {
namespace {

struct Case {
  const char* checkpoint;
  // End to end limits differ: tiny-pro's settings make it less chaotic.
  double cosine, agreement;
};

// Every backend, and the cheapest one with cache rows in either format.
std::vector<std::pair<std::string_view, std::string_view>> runs() {
  std::vector<std::pair<std::string_view, std::string_view>> all;
  for (const std::string_view name : backend_names()) all.emplace_back(name, "auto");
  for (const std::string_view rows : {"bf16", "fp8"}) all.emplace_back("cpu", rows);
  return all;
}

class Golden : public testing::TestWithParam<Case> {};

TEST_P(Golden, EveryBackendMeetsItsLimits) {
  const std::string dir = std::string("golden/") + GetParam().checkpoint;
  if (!tests::have_shared(dir)) GTEST_SKIP() << "no golden data at " << tests::shared_path(dir);
  for (const auto& [name, cache_rows] : runs()) {
    SCOPED_TRACE(name);
    SCOPED_TRACE(cache_rows);
    Result<LoadedModel> loaded = load_model(tests::shared_path(dir), name, {}, cache_rows);
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    VerifyLimits limits = default_limits(loaded->backend->exact_rounding());
    limits.end_to_end_cosine = GetParam().cosine;
    // One of forty decode steps is 2.5 %. Without exact rounding which of them flip is chance: builds of
    // one cpu backend gave 0.85 and 0.95 on tiny-pro. The default limit judges those.
    if (loaded->backend->exact_rounding()) limits.end_to_end_agreement = GetParam().agreement;
    Result<VerifyReport> report =
        verify_golden(*loaded, tests::shared_path(dir + "/golden.safetensors"), limits, {});
    ASSERT_TRUE(report.ok()) << report.status().message();
    EXPECT_TRUE(report->mtp_cosine.has_value());
    for (const std::string& failure : report->failures) ADD_FAILURE() << failure;
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Golden,
                         testing::Values(Case{"tiny-flash", 0.985, 0.84}, Case{"tiny-pro", 0.997, 0.88}),
                         [](const auto& param) {
                           std::string name = param.param.checkpoint;
                           name[name.find('-')] = '_';
                           return name;
                         });

}  // namespace
}  // namespace dsv4
