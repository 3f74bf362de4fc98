// The loop of the commands that read JSON lines from standard input and answer each with one line.
#pragma once

#include <functional>

#include "dsv4/status.h"
#include "text/py_json.h"

namespace dsv4::apps {

// Answers every line with the JSON of `answer`, or with {"error": message}, and flushes it, so that
// the command can serve as a coprocess. Returns the exit code: kExitFailed if any line failed.
int run_json_lines(const std::function<Result<py::Value>(const py::Value& request)>& answer);

// The member `key` of the request as a string; an error that names it where it is not one.
Result<std::string> string_member(const py::Value& request, std::string_view key);

}  // namespace dsv4::apps
