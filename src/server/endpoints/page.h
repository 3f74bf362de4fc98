// The chat page, put into the program when it is built.
#pragma once

#include <string_view>

namespace dsv4::server {

extern const std::string_view kPage;

}  // namespace dsv4::server
