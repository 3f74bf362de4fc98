#include "json_lines.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>

#include "base/str.h"
#include "command.h"

namespace dsv4::apps {

int run_json_lines(const std::function<Result<py::Value>(const py::Value& request)>& answer) {
  std::ios::sync_with_stdio(false);
  int exit_code = kExitOk;
  std::string line;
  for (size_t number = 1; std::getline(std::cin, line); ++number) {
    const auto respond = [&]() -> Result<py::Value> {
      DSV4_ASSIGN(const py::Value request, py::loads(line));
      if (!request.if_object()) {
        return Status(Code::kInvalidArgument,
                      cat("expected a JSON object on the line, found ", request.type_name()));
      }
      return answer(request);
    };
    Result<py::Value> response = respond();
    if (!response.ok()) {
      exit_code = kExitFailed;
      response = py::Value::object(
          {{"error", py::Value(cat("line ", number, ": ", response.status().message()))}});
    }
    std::string out;
    py::dump_to(out, *response);
    out.push_back('\n');
    if (std::fwrite(out.data(), 1, out.size(), stdout) != out.size() || std::fflush(stdout) != 0) {
      return fail(
          Status(Code::kIo, cat("standard output: cannot be written: ", std::strerror(errno))));
    }
  }
  return exit_code;
}

Result<std::string> string_member(const py::Value& request, std::string_view key) {
  const py::Value* value = request.find(key);
  if (!value || !value->if_string()) {
    return Status(Code::kInvalidArgument, cat("\"", key, "\": expected a string, found ",
                                              value ? value->type_name() : "nothing"));
  }
  return *value->if_string();
}

}  // namespace dsv4::apps
