// Typed reading of a JSON request body. The first thing that is wrong is kept, with the path of its
// field; what is read after it does not matter, so that callers check once, at the end.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"
#include "text/py_json.h"

namespace dsv4::server {

// The first problem of a request.
class Problem {
 public:
  bool any() const { return found_.has_value(); }
  const ApiError& error() const { return *found_; }
  void report(std::string param, std::string message, std::string code = {});

 private:
  std::optional<ApiError> found_;
};

class Fields {
 public:
  // `value` must outlive this. `path` is "" for the body itself.
  Fields(const py::Value& value, std::string path, Problem& problem);

  // nullptr / nullopt where the field is absent or null.
  const py::Value* get(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<int64_t> integer(std::string_view key, int64_t min, int64_t max) const;
  std::optional<double> number(std::string_view key, double min, double max) const;
  std::optional<std::string> string(std::string_view key) const;
  std::optional<std::string> one_of(std::string_view key,
                                    std::initializer_list<std::string_view> names) const;
  const py::Value* object(std::string_view key) const;
  const py::Value::Array* array(std::string_view key) const;
  // A string or a list of them; none is empty.
  std::vector<std::string> strings(std::string_view key, size_t most) const;

  std::string path(std::string_view key) const;
  std::string path(std::string_view key, size_t index) const;
  void report(std::string_view key, std::string message) const;
  Problem& problem() const { return *problem_; }

 private:
  void wrong(std::string_view key, std::string_view expected, const py::Value& found) const;

  const py::Value* value_;
  std::string path_;
  Problem* problem_;
};

// An integer that fits, of a JSON number without fraction; nullopt otherwise.
std::optional<int64_t> as_int64(const py::Value& value);
std::optional<double> as_number(const py::Value& value);

// The other direction.
py::Value json_int(int64_t x);

}  // namespace dsv4::server
