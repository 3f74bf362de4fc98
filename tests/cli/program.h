// Runs the built program as a user would and says what it did.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace dsv4::cli {

namespace fs = std::filesystem;

inline std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

inline void write_file(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// A folder that goes with the test.
class TempDir {
 public:
  TempDir() {
    std::string name = (fs::temp_directory_path() / "dsv4-cli-XXXXXX").string();
    if (mkdtemp(name.data())) path_ = name;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  fs::path operator/(const std::string& name) const { return path_ / name; }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

struct Options {
  std::string input;                    // standard input
  std::string output_path;              // standard output goes here instead, e.g. /dev/full
  rlim_t largest_file = RLIM_INFINITY;  // as on a disk that fills up after that many bytes
};

struct Outcome {
  int code = -1;  // exit code; -1 when a signal ended it
  int signal = 0;
  std::string out, err;
};

inline Outcome run(const std::vector<std::string>& args, const Options& options = {}) {
  const TempDir dir;
  write_file(dir / "in", options.input);
  const std::string out =
      options.output_path.empty() ? (dir / "out").string() : options.output_path;
  const std::string err = (dir / "err").string(), in = (dir / "in").string();

  std::vector<std::string> words = {DSV4_PROGRAM};
  words.insert(words.end(), args.begin(), args.end());
  std::vector<char*> argv;
  for (std::string& w : words) argv.push_back(w.data());
  argv.push_back(nullptr);

  const pid_t child = fork();
  if (child == 0) {
    const int i = open(in.c_str(), O_RDONLY);
    const int o = open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    const int e = open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (i < 0 || o < 0 || e < 0 || dup2(i, 0) < 0 || dup2(o, 1) < 0 || dup2(e, 2) < 0) _exit(99);
    if (options.largest_file != RLIM_INFINITY) {
      // A full disk sends no signal: with this one ignored the write fails as it would there.
      std::signal(SIGXFSZ, SIG_IGN);
      const rlimit limit = {options.largest_file, options.largest_file};
      if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(99);
    }
    execv(argv[0], argv.data());
    _exit(99);
  }
  Outcome outcome;
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) return outcome;
  if (WIFEXITED(status)) outcome.code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) outcome.signal = WTERMSIG(status);
  if (options.output_path.empty()) outcome.out = read_file(out);
  outcome.err = read_file(err);
  return outcome;
}

// Failed as the program promises: exit code 1, one line on standard error that holds all `words`.
inline void expect_failure(const Outcome& o, const std::vector<std::string>& words) {
  EXPECT_EQ(o.signal, 0) << o.err;
  EXPECT_EQ(o.code, 1) << o.err;
  EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
  EXPECT_EQ(o.err.rfind("dsv4: ", 0), 0u) << o.err;
  EXPECT_TRUE(!o.err.empty() && o.err.back() == '\n') << o.err;
  for (const std::string& word : words) {
    EXPECT_NE(o.err.find(word), std::string::npos) << "no '" << word << "' in: " << o.err;
  }
}

inline void expect_success(const Outcome& o) {
  EXPECT_EQ(o.signal, 0) << o.err;
  EXPECT_EQ(o.code, 0) << o.err;
  EXPECT_EQ(o.err, "");
}

}  // namespace dsv4::cli
