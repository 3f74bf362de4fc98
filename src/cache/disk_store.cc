#include "cache/disk_store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/str.h"

namespace dsv4 {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMagic = 0x3156434B34565344;  // "DSV4KCV1", lowest byte first
constexpr size_t kMostPending = size_t{256} << 20;
constexpr uint64_t kMostTokens = 1 << 24;
constexpr std::string_view kSuffix = ".kv";
constexpr std::string_view kPart = ".part";

// The beginning of a file; tokens and data follow. Written and read on the same kind of machine,
// which the fingerprint sees to.
struct FileHeader {
  uint64_t magic = kMagic;
  Hash128 fingerprint, key, parent;
  int64_t length = 0;
  uint64_t tokens = 0, bytes = 0;
  uint64_t kind = 0;
  Hash128 checksum;  // of header (with zeros here), tokens and data
};

FileHeader header_of(const DiskStore::Entry& e, Hash128 fingerprint) {
  FileHeader h;
  h.fingerprint = fingerprint;
  h.key = e.key;
  h.parent = e.parent;
  h.length = e.length;
  h.tokens = e.tokens.size();
  h.bytes = e.bytes;
  h.kind = static_cast<uint64_t>(e.kind);
  return h;
}

Hash128 checksum_of(FileHeader h, const std::vector<int32_t>& tokens,
                    const std::vector<char>& data) {
  h.checksum = {};
  return Hasher()
      .add(&h, sizeof h)
      .add(std::span<const int32_t>(tokens))
      .add(std::span<const char>(data))
      .finish();
}

class File {
 public:
  File(const std::string& path, int flags) : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {}
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  bool ok() const { return fd_ >= 0; }
  bool read(void* out, size_t bytes) {
    char* at = static_cast<char*>(out);
    while (bytes > 0) {
      const ssize_t n = ::read(fd_, at, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      at += n;
      bytes -= static_cast<size_t>(n);
    }
    return true;
  }
  bool write(const void* data, size_t bytes) {
    const char* at = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t n = ::write(fd_, at, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      at += n;
      bytes -= static_cast<size_t>(n);
    }
    return true;
  }

 private:
  const int fd_;
};

// Header and tokens, believed only as far as the file's size and the fingerprint agree with them.
bool read_entry(File& file, uint64_t file_size, Hash128 fingerprint, FileHeader& h,
                DiskStore::Entry& e) {
  if (!file.ok() || !file.read(&h, sizeof h) || h.magic != kMagic || h.fingerprint != fingerprint ||
      h.tokens > kMostTokens || h.bytes > file_size || h.length < 0 || h.kind < 1 || h.kind > 2 ||
      file_size != sizeof h + h.tokens * sizeof(int32_t) + h.bytes) {
    return false;
  }
  e.kind = static_cast<DiskStore::Kind>(h.kind);
  e.key = h.key;
  e.parent = h.parent;
  e.length = h.length;
  e.bytes = h.bytes;
  e.tokens.resize(h.tokens);
  return file.read(e.tokens.data(), h.tokens * sizeof(int32_t));
}

}  // namespace

DiskStore::DiskStore(std::string dir, Hash128 fingerprint, int lock)
    : dir_(std::move(dir)),
      fingerprint_(fingerprint),
      lock_(lock),
      writer_([this] { write_files(); }) {}

Result<std::unique_ptr<DiskStore>> DiskStore::open(const std::string& dir, Hash128 fingerprint) {
  std::error_code error;
  fs::create_directories(dir, error);
  const std::string lock_path = dir + "/lock";
  const int lock = error ? -1 : ::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock < 0) {
    const std::string why = error ? error.message() : std::strerror(errno);
    return Status(Code::kIo,
                  cat("prefix cache: ", dir, ": ", why, "; expected a folder that can be written"));
  }
  if (::flock(lock, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock);
    return Status(
        Code::kUnavailable,
        cat("prefix cache: ", dir, " is in use by another process; give each its own folder"));
  }
  return std::unique_ptr<DiskStore>(new DiskStore(dir, fingerprint, lock));
}

DiskStore::~DiskStore() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  writer_.join();
  ::close(lock_);
}

std::string DiskStore::path(Hash128 key) const {
  char name[40];
  std::snprintf(name, sizeof name, "%016llx%016llx", static_cast<unsigned long long>(key.a),
                static_cast<unsigned long long>(key.b));
  return cat(dir_, "/", name, kSuffix);
}

size_t DiskStore::file_bytes(const Entry& e) {
  return sizeof(FileHeader) + e.tokens.size() * sizeof(int32_t) + e.bytes;
}

void DiskStore::reject(const std::string& file) {
  std::error_code error;
  fs::remove(file, error);
  const std::lock_guard lock(mutex_);
  ++rejected_;
}

int64_t DiskStore::rejected() const {
  const std::lock_guard lock(mutex_);
  return rejected_;
}

std::vector<DiskStore::Entry> DiskStore::scan() {
  std::vector<std::pair<fs::file_time_type, Entry>> found;
  std::error_code error;
  for (fs::directory_iterator it(dir_, error), end; !error && it != end; it.increment(error)) {
    const std::string file = it->path().string();
    if (file.ends_with(kPart)) {  // of a process that was killed
      std::error_code ignored;
      fs::remove(file, ignored);
      continue;
    }
    if (!file.ends_with(kSuffix)) continue;
    std::error_code failed;
    const uint64_t size = fs::file_size(it->path(), failed);
    const auto used = fs::last_write_time(it->path(), failed);
    Entry entry;
    FileHeader header;
    File f(file, O_RDONLY);
    if (failed || !read_entry(f, size, fingerprint_, header, entry) || path(entry.key) != file) {
      reject(file);
      continue;
    }
    found.emplace_back(used, std::move(entry));
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<Entry> entries;
  for (auto& [used, entry] : found) entries.push_back(std::move(entry));
  return entries;
}

bool DiskStore::put(const Entry& entry, SharedBytes data) {
  {
    const std::lock_guard lock(mutex_);
    if (pending_bytes_ + entry.bytes > kMostPending && pending_bytes_ > 0) return false;
    if (!pending_.emplace(entry.key, Pending{entry, std::move(data)}).second) return true;
    pending_bytes_ += entry.bytes;
    order_.push_back(entry.key);
  }
  changed_.notify_all();
  return true;
}

Result<SharedBytes> DiskStore::get(const Entry& entry) {
  {
    const std::lock_guard lock(mutex_);
    const auto it = pending_.find(entry.key);
    if (it != pending_.end()) return it->second.data;
  }
  const std::string file = path(entry.key);
  std::error_code error;
  const uint64_t size = fs::file_size(file, error);
  if (error) return Status(Code::kNotFound, cat("prefix cache: ", file, ": ", error.message()));
  File f(file, O_RDONLY);
  FileHeader header;
  Entry found;
  auto data = std::make_shared<std::vector<char>>();
  bool good = read_entry(f, size, fingerprint_, header, found) && found.key == entry.key &&
              found.kind == entry.kind && found.tokens == entry.tokens &&
              found.bytes == entry.bytes;
  if (good) {
    data->resize(found.bytes);
    good = f.read(data->data(), data->size()) &&
           checksum_of(header, found.tokens, *data) == header.checksum;
  }
  if (!good) {
    reject(file);
    return Status(Code::kCorrupt, cat("prefix cache: ", file, " is damaged and was removed"));
  }
  return SharedBytes(std::move(data));
}

void DiskStore::remove(Hash128 key) {
  const std::lock_guard lock(mutex_);
  const auto it = pending_.find(key);
  if (it != pending_.end()) {
    pending_bytes_ -= it->second.entry.bytes;
    pending_.erase(it);  // the writer removes what it has begun
  }
  std::error_code ignored;
  fs::remove(path(key), ignored);
}

void DiskStore::touch(Hash128 key) {
  std::error_code ignored;
  fs::last_write_time(path(key), fs::file_time_type::clock::now(), ignored);
}

void DiskStore::flush() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return pending_.empty(); });
}

Status DiskStore::write_file(const Pending& p) const {
  const std::string to = path(p.entry.key), part = cat(to, kPart);
  FileHeader header = header_of(p.entry, fingerprint_);
  header.checksum = checksum_of(header, p.entry.tokens, *p.data);
  bool good = false;
  {
    File f(part, O_WRONLY | O_CREAT | O_TRUNC);
    good = f.ok() && f.write(&header, sizeof header) &&
           f.write(p.entry.tokens.data(), p.entry.tokens.size() * sizeof(int32_t)) &&
           f.write(p.data->data(), p.data->size());
  }
  if (good && std::rename(part.c_str(), to.c_str()) == 0) return {};
  const std::string why = std::strerror(errno);
  std::error_code ignored;
  fs::remove(part, ignored);
  return Status(Code::kIo, cat("prefix cache: ", to, ": ", why));
}

// A file that could not be written is one that a reader will not find.
void DiskStore::write_files() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stop_ || !order_.empty(); });
    if (order_.empty()) return;  // and stopped
    const Hash128 key = order_.front();
    order_.pop_front();
    const auto it = pending_.find(key);
    if (it == pending_.end()) continue;
    const Pending work = it->second;
    lock.unlock();
    const bool written = write_file(work).ok();
    lock.lock();
    const auto now = pending_.find(key);
    if (now != pending_.end() && now->second.data == work.data) {
      pending_bytes_ -= work.entry.bytes;
      pending_.erase(now);
    } else if (written && now == pending_.end()) {  // removed meanwhile
      std::error_code ignored;
      fs::remove(path(key), ignored);
    }
    changed_.notify_all();
  }
}

}  // namespace dsv4
