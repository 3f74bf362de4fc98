#include "command_line.h"

#include <CLI/CLI.hpp>
#include <utility>
#include <vector>

namespace dsv4::apps {

Option Option::required() {
  return Option(option_->required());
}
Option Option::show_default() {
  return Option(option_->capture_default_str());
}
Option Option::group(const std::string& heading) {
  return Option(option_->group(heading));
}
Option Option::delimiter(char separator) {
  return Option(option_->delimiter(separator));
}
Option Option::excludes(const Option& other) {
  return Option(option_->excludes(other.option_));
}
Option Option::positive() {
  return Option(option_->check(CLI::PositiveNumber));
}
Option Option::not_negative() {
  return Option(option_->check(CLI::NonNegativeNumber));
}
Option Option::range(int64_t least, int64_t most) {
  return Option(option_->check(CLI::Range(least, most)));
}
Option Option::real_range(double least, double most) {
  return Option(option_->check(CLI::Range(least, most)));
}
Option Option::one_of(std::initializer_list<std::string> values) {
  return Option(option_->check(CLI::IsMember(std::vector<std::string>(values))));
}
Option Option::not_empty() {
  return Option(option_->check(
      CLI::Validator([](std::string& s) { return s.empty() ? "empty" : ""; }, "TEXT")));
}

Command Command::subcommand(const std::string& name, const std::string& description) {
  return Command(app_->add_subcommand(name, description));
}

void Command::require_subcommand() {
  app_->require_subcommand(1);
}

template <class T>
Option Command::option(const std::string& names, T& value, const std::string& description) {
  return Option(app_->add_option(names, value, description));
}
using Text = const std::string&;
template Option Command::option(Text, std::string&, Text);
template Option Command::option(Text, int&, Text);
template Option Command::option(Text, uint16_t&, Text);
template Option Command::option(Text, int64_t&, Text);
template Option Command::option(Text, uint64_t&, Text);
template Option Command::option(Text, float&, Text);
template Option Command::option(Text, double&, Text);
template Option Command::option(Text, std::vector<std::string>&, Text);
template Option Command::option(Text, std::vector<int64_t>&, Text);
template Option Command::option(Text, std::optional<int>&, Text);
template Option Command::option(Text, std::optional<int64_t>&, Text);
template Option Command::option(Text, std::optional<uint64_t>&, Text);
template Option Command::option(Text, std::optional<float>&, Text);
template Option Command::option(Text, std::optional<double>&, Text);

Option Command::flag(const std::string& names, bool& value, const std::string& description) {
  return Option(app_->add_flag(names, value, description));
}

Option Command::find_option(const std::string& name) {
  return Option(app_->get_option(name));
}

Command Command::one_of_options(const std::string& heading) {
  CLI::Option_group* group = app_->add_option_group(heading);
  group->require_option(1);
  return Command(group);
}

void Command::footer(const std::string& text) {
  app_->footer(text);
}
void Command::run(std::function<void()> action) {
  app_->callback(std::move(action));
}

std::optional<int> read_command_line(int argc, char** argv, const std::string& description,
                                     int usage_error,
                                     const std::function<void(Command)>& commands) {
  CLI::App app{description};
  commands(Command(&app));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : usage_error;
  }
  return std::nullopt;
}

}  // namespace dsv4::apps
