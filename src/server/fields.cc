#include "server/fields.h"

#include <charconv>
#include <cmath>

#include "base/str.h"

namespace dsv4::server {

void Problem::report(std::string param, std::string message, std::string code) {
  if (found_) return;
  found_ = ApiError{.status = code == "model_not_found" ? 404 : 400,
                    .message = std::move(message),
                    .param = std::move(param),
                    .code = std::move(code)};
}

std::optional<int64_t> as_int64(const py::Value& value) {
  const py::Int* const x = value.if_int();
  if (!x) return std::nullopt;
  int64_t out = 0;
  const char* const end = x->digits.data() + x->digits.size();
  const auto [rest, error] = std::from_chars(x->digits.data(), end, out);
  if (error != std::errc() || rest != end) return std::nullopt;
  return out;
}

std::optional<double> as_number(const py::Value& value) {
  if (const double* x = value.if_float()) return *x;
  if (const py::Int* x = value.if_int()) return py::parse_float(x->digits);
  return std::nullopt;
}

py::Value json_int(int64_t x) {
  return py::Value(py::Int{std::to_string(x)});
}

Fields::Fields(const py::Value& value, std::string path, Problem& problem)
    : value_(&value), path_(std::move(path)), problem_(&problem) {
  if (value.if_object()) return;
  problem.report(path_, cat(path_.empty() ? std::string_view("the request body") : path_,
                            ": expected an object, found ", value.type_name()));
}

std::string Fields::path(std::string_view key) const {
  return path_.empty() ? std::string(key) : cat(path_, ".", key);
}
std::string Fields::path(std::string_view key, size_t index) const {
  return cat(path(key), "[", index, "]");
}

void Fields::report(std::string_view key, std::string message) const {
  problem_->report(path(key), cat(path(key), ": ", message));
}

void Fields::wrong(std::string_view key, std::string_view expected, const py::Value& found) const {
  std::string text(found.type_name());
  if (!found.if_object() && !found.if_array()) {
    std::string shown = py::dumps(found);
    if (shown.size() <= 40) text = shown;
  }
  report(key, cat("expected ", expected, ", found ", text));
}

const py::Value* Fields::get(std::string_view key) const {
  const py::Value* const found = value_->find(key);
  return found && !found->is_null() ? found : nullptr;
}

std::optional<bool> Fields::boolean(std::string_view key) const {
  const py::Value* const v = get(key);
  if (!v) return std::nullopt;
  if (const bool* x = v->if_bool()) return *x;
  wrong(key, "true or false", *v);
  return std::nullopt;
}

std::optional<int64_t> Fields::integer(std::string_view key, int64_t min, int64_t max) const {
  const py::Value* const v = get(key);
  if (!v) return std::nullopt;
  const auto x = as_int64(*v);
  if (x && *x >= min && *x <= max) return x;
  wrong(key, cat("an integer from ", min, " to ", max), *v);
  return std::nullopt;
}

std::optional<double> Fields::number(std::string_view key, double min, double max) const {
  const py::Value* const v = get(key);
  if (!v) return std::nullopt;
  const auto x = as_number(*v);
  if (x && *x >= min && *x <= max) return x;  // false for NaN
  wrong(key, cat("a number from ", py::float_repr(min), " to ", py::float_repr(max)), *v);
  return std::nullopt;
}

std::optional<std::string> Fields::string(std::string_view key) const {
  const py::Value* const v = get(key);
  if (!v) return std::nullopt;
  if (const std::string* x = v->if_string()) return *x;
  wrong(key, "a string", *v);
  return std::nullopt;
}

std::optional<std::string> Fields::one_of(std::string_view key,
                                          std::initializer_list<std::string_view> names) const {
  const py::Value* const v = get(key);
  if (!v) return std::nullopt;
  std::string expected;
  for (const std::string_view name : names) {
    const std::string* const x = v->if_string();
    if (x && *x == name) return *x;
    expected += cat(expected.empty() ? "" : ", ", "\"", name, "\"");
  }
  wrong(key, cat("one of ", expected), *v);
  return std::nullopt;
}

const py::Value* Fields::object(std::string_view key) const {
  const py::Value* const v = get(key);
  if (!v || v->if_object()) return v;
  wrong(key, "an object", *v);
  return nullptr;
}

const py::Value::Array* Fields::array(std::string_view key) const {
  const py::Value* const v = get(key);
  if (!v) return nullptr;
  if (const py::Value::Array* x = v->if_array()) return x;
  wrong(key, "an array", *v);
  return nullptr;
}

std::vector<std::string> Fields::strings(std::string_view key, size_t most) const {
  const py::Value* const v = get(key);
  if (!v) return {};
  std::vector<std::string> out;
  const auto add = [&](const py::Value& item) {
    const std::string* const x = item.if_string();
    if (!x || x->empty()) {
      wrong(key, "a string that is not empty, or a list of them", item);
    } else {
      out.push_back(*x);
    }
  };
  if (const py::Value::Array* items = v->if_array()) {
    for (const py::Value& item : *items) add(item);
  } else {
    add(*v);
  }
  if (out.size() > most) report(key, cat("expected at most ", most, ", found ", out.size()));
  return out;
}

}  // namespace dsv4::server
