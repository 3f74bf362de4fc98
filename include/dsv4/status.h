// Errors are values. A Status carries one line for the user: where (file, argument), what was
// expected, what was found, and what to do about it. The library never throws across this API,
// never prints, and never exits.
#pragma once

#include <cassert>
#include <new>
#include <string>
#include <string_view>
#include <utility>

namespace dsv4 {

enum class Code : int {
  kOk = 0,
  kInvalidArgument = 1,    // the caller's argument is wrong
  kNotFound = 2,           // a file or a tensor that must exist does not
  kCorrupt = 3,            // a file's content contradicts its format
  kUnsupported = 4,        // valid, but nothing here can run it
  kResourceExhausted = 5,  // memory, pages, disk
  kIo = 6,                 // the operating system refused a read or a write
  kCancelled = 7,
  kInternal = 8,     // a bug of ours
  kUnavailable = 9,  // no room now; the same call may succeed later
  kTooLong = 10,     // a request beyond what context or cache can ever hold
};

std::string_view code_name(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

  // The same error seen from one level up: "context: message".
  Status with_context(std::string_view context) const {
    if (ok()) return *this;
    return Status(code_, std::string(context) + ": " + message_);
  }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

// A value or a Status that is not ok. g++ 12 has no std::expected in C++20.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : has_value_(true) { new (&value_) T(std::move(value)); }  // NOLINT(implicit)
  Result(Status status) : status_(std::move(status)) {                       // NOLINT(implicit)
    assert(!status_.ok() && "a Result without a value needs an error");
  }
  Result(Result&& other) noexcept : status_(std::move(other.status_)), has_value_(other.has_value_) {
    if (has_value_) new (&value_) T(std::move(other.value_));
  }
  Result& operator=(Result&& other) noexcept {
    if (this != &other) {
      this->~Result();
      new (this) Result(std::move(other));
    }
    return *this;
  }
  Result(const Result&) = delete;
  Result& operator=(const Result&) = delete;
  ~Result() {
    if (has_value_) value_.~T();
  }

  bool ok() const { return has_value_; }
  const Status& status() const { return status_; }

  T& value() & {
    assert(has_value_);
    return value_;
  }
  const T& value() const& {
    assert(has_value_);
    return value_;
  }
  T&& value() && {
    assert(has_value_);
    return std::move(value_);
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  Status status_;
  union {
    T value_;
  };
  bool has_value_ = false;
};

// Early return on error, for code that is a sequence of steps that may each fail.
#define DSV4_TRY(expr)                             \
  do {                                             \
    if (::dsv4::Status dsv4_status_ = (expr); !dsv4_status_.ok()) return dsv4_status_; \
  } while (0)

#define DSV4_CONCAT_(a, b) a##b
#define DSV4_CONCAT(a, b) DSV4_CONCAT_(a, b)

// DSV4_ASSIGN(auto config, load_config(path));
#define DSV4_ASSIGN(decl, expr) DSV4_ASSIGN_(DSV4_CONCAT(dsv4_result_, __LINE__), decl, expr)
#define DSV4_ASSIGN_(tmp, decl, expr) \
  auto tmp = (expr);                  \
  if (!tmp.ok()) return tmp.status(); \
  decl = std::move(tmp).value()

}  // namespace dsv4
