// Wrong settings are errors that name the setting; "auto" does not go on to a slower backend.
#include <gtest/gtest.h>

#include <cstdlib>

#include "api/backends.h"
#include "base/memory.h"

namespace dsv4 {
namespace {

void expect_refused(const char* variable, const char* value) {
  setenv(variable, value, 1);
  for (const char* device : {"auto", "cpu"}) {
    const auto backend = make_backend(device);
    ASSERT_FALSE(backend.ok()) << variable << "=" << value << " with " << device;
    EXPECT_EQ(backend.status().code(), Code::kInvalidArgument);
    EXPECT_NE(backend.status().message().find(variable), std::string::npos) << backend.status().message();
    EXPECT_NE(backend.status().message().find(value), std::string::npos) << backend.status().message();
  }
  unsetenv(variable);
}

TEST(Environment, WrongSettingsAreRefused) {
  expect_refused("DSV4_CPU_ISA", "mmx");
  expect_refused("DSV4_THREADS", "two");
}

TEST(Environment, MemoryIsWhatTheSystemSays) {
  const HostMemory memory = host_memory();
  EXPECT_GT(memory.total, size_t{1} << 20);
  EXPECT_GT(memory.available, size_t{0});
  EXPECT_LE(memory.available, memory.total);
  const auto backend = make_backend("cpu");
  ASSERT_TRUE(backend.ok());
  EXPECT_EQ((*backend)->memory().total, memory.total);
}

}  // namespace
}  // namespace dsv4
