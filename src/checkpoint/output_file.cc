#include "checkpoint/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "base/str.h"

namespace dsv4 {
namespace {

constexpr size_t kBufferBytes = 1u << 20;

}  // namespace

Result<OutputFile> OutputFile::create(const std::string& path, uint64_t expected_bytes) {
  struct stat st {};
  const bool in_place = ::stat(path.c_str(), &st) == 0 && !S_ISREG(st.st_mode);
  const std::string temporary = in_place ? std::string() : path + ".partial";
  const std::string& target = in_place ? path : temporary;
  const int flags = O_WRONLY | O_CLOEXEC | (in_place ? 0 : O_CREAT | O_TRUNC);
  const int fd = ::open(target.c_str(), flags, 0644);
  if (fd < 0) {
    return Status(Code::kIo, cat(path, ": cannot be written (", std::generic_category().message(errno),
                                 "); check the folder and its permissions"));
  }
  OutputFile file(path, temporary, fd);
  if (!in_place && expected_bytes > 0 &&
      ::fallocate(fd, 0, 0, static_cast<off_t>(expected_bytes)) != 0) {
    // Not every file system can reserve; those that can say when there is no room.
    const int error = errno;
    if (error == ENOSPC || error == EFBIG || error == EDQUOT) {
      return file.fail(error, cat("reserving ", expected_bytes, " bytes"));
    }
  }
  return file;
}

OutputFile::OutputFile(OutputFile&& o) noexcept
    : path_(std::move(o.path_)),
      temporary_(std::exchange(o.temporary_, {})),
      fd_(std::exchange(o.fd_, -1)),
      written_(o.written_),
      buffer_(std::move(o.buffer_)) {}

OutputFile& OutputFile::operator=(OutputFile&& o) noexcept {
  std::swap(path_, o.path_);
  std::swap(temporary_, o.temporary_);
  std::swap(fd_, o.fd_);
  std::swap(written_, o.written_);
  std::swap(buffer_, o.buffer_);
  return *this;
}

OutputFile::~OutputFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

Status OutputFile::fail(int error, std::string_view doing) const {
  const bool full = error == ENOSPC || error == EFBIG || error == EDQUOT;
  return Status(full ? Code::kResourceExhausted : Code::kIo,
                cat(path_, ": ", doing, " failed after ", written_, " bytes (",
                    std::generic_category().message(error), "); ",
                    full ? "free some space or write elsewhere" : "check the disk"));
}

Status OutputFile::write_through(const uint8_t* data, size_t bytes) {
  while (bytes > 0) {
    const ssize_t n = ::write(fd_, data, std::min(bytes, size_t{1} << 30));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno, "writing");
    data += n;
    bytes -= static_cast<size_t>(n);
    written_ += static_cast<uint64_t>(n);
  }
  return {};
}

Status OutputFile::flush() {
  const Status status = write_through(buffer_.data(), buffer_.size());
  buffer_.clear();
  return status;
}

Status OutputFile::write(const void* data, size_t bytes) {
  const auto* begin = static_cast<const uint8_t*>(data);
  if (buffer_.size() + bytes > kBufferBytes) DSV4_TRY(flush());
  if (bytes >= kBufferBytes) return write_through(begin, bytes);
  if (buffer_.capacity() == 0) buffer_.reserve(kBufferBytes);
  buffer_.insert(buffer_.end(), begin, begin + bytes);
  return {};
}

Status OutputFile::commit() {
  DSV4_TRY(flush());
  // Network file systems report a full disk only here.
  const int fd = std::exchange(fd_, -1);
  const std::string temporary = std::exchange(temporary_, {});
  int error = ::close(fd) == 0 ? 0 : errno;
  if (temporary.empty()) return error == 0 ? Status() : fail(error, "closing");
  if (error == 0 && ::rename(temporary.c_str(), path_.c_str()) != 0) error = errno;
  if (error == 0) return {};
  ::unlink(temporary.c_str());
  return fail(error, "closing");
}

Status write_file(const std::string& path, std::string_view content) {
  DSV4_ASSIGN(OutputFile file, OutputFile::create(path));
  DSV4_TRY(file.write(content.data(), content.size()));
  return file.commit();
}

}  // namespace dsv4
