// A file that appears under its name only when it is complete.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dsv4/status.h"

namespace dsv4 {

// Writes go to "PATH.partial", which commit() renames; without commit() nothing is left behind. A
// path that is no regular file (a pipe, /dev/full) is written in place. A full disk is a
// Code::kResourceExhausted.
class OutputFile {
 public:
  // `expected_bytes`, where known, is reserved at once, so that a full disk shows before the work.
  static Result<OutputFile> create(const std::string& path, uint64_t expected_bytes = 0);

  OutputFile(OutputFile&& o) noexcept;
  OutputFile& operator=(OutputFile&& o) noexcept;
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  Status write(const void* data, size_t bytes);
  Status commit();

  const std::string& path() const { return path_; }
  uint64_t written() const { return written_; }

 private:
  OutputFile(std::string path, std::string temporary, int fd)
      : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd) {}
  Status flush();
  Status write_through(const uint8_t* data, size_t bytes);
  Status fail(int error, std::string_view doing) const;

  std::string path_, temporary_;  // temporary_ empty: in place
  int fd_ = -1;
  uint64_t written_ = 0;
  std::vector<uint8_t> buffer_;  // small writes gather here
};

// A whole small file.
Status write_file(const std::string& path, std::string_view content);

}  // namespace dsv4
