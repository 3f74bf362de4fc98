// The command line of a program with subcommands. CLI11 stands behind it, in command_line.cc alone:
// its header costs some five seconds in every file that includes it.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace dsv4::apps {

// A handle; copies are the same option. Checks refuse the command line with a message that names
// the option, and stand in --help.
class Option {
 public:
  explicit Option(CLI::Option* option) : option_(option) {}

  Option required();
  Option show_default();                     // the variable's value when this is called
  Option group(const std::string& heading);  // of --help
  Option delimiter(char separator);          // several values in one argument
  Option excludes(const Option& other);

  Option positive();
  Option not_negative();
  Option range(int64_t least, int64_t most);
  Option real_range(double least, double most);
  Option one_of(std::initializer_list<std::string> values);
  Option not_empty();

 private:
  CLI::Option* option_;
};

// A handle; copies are the same command.
class Command {
 public:
  explicit Command(CLI::App* app) : app_(app) {}

  Command subcommand(const std::string& name, const std::string& description);
  // With subcommands: one of them has to be given.
  void require_subcommand();

  // names: "-m,--model", or without dashes for a positional argument; "--x,!--no-x" for a flag that
  // can be denied. T: bool for flags; for options std::string, int, int64_t, uint64_t, double, a
  // vector of those, or an optional that stays empty when the option is not given. `value` has to
  // live until the command line is read.
  template <class T>
  Option option(const std::string& names, T& value, const std::string& description);
  Option flag(const std::string& names, bool& value, const std::string& description);
  Option find_option(const std::string& name);  // one that was added before

  // A heading of --help; exactly one option of the group has to be given.
  Command one_of_options(const std::string& heading);

  void footer(const std::string& text);
  // Called once when this is the command that was given.
  void run(std::function<void()> action);

 private:
  CLI::App* app_;
};

// Reads the command line and runs the command that was given. The exit code where the program ends
// here: 0 after --help, `usage_error` after a message about what is wrong.
std::optional<int> read_command_line(int argc, char** argv, const std::string& description,
                                     int usage_error, const std::function<void(Command)>& commands);

}  // namespace dsv4::apps
