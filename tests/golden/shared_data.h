// Where tests find the golden data: beside the checkout, or where DSV4_SHARED says.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace dsv4::tests {

inline std::string shared_path(const std::string& name) {
  const char* root = std::getenv("DSV4_SHARED");
  return std::string(root ? root : "../shared") + "/" + name;
}

inline bool have_shared(const std::string& name) { return std::filesystem::exists(shared_path(name)); }

}  // namespace dsv4::tests
