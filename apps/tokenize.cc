#include <charconv>
#include <memory>

#include "base/str.h"
#include "command.h"
#include "json_lines.h"
#include "text/tokenizer.h"

namespace dsv4::apps {
namespace {

struct Options {
  std::string tokenizer;
  std::string model;
  bool decode = false;
};

Result<py::Value> encode_line(const Tokenizer& tokenizer, const py::Value& request) {
  DSV4_ASSIGN(const std::string text, string_member(request, "text"));
  DSV4_ASSIGN(const std::vector<int32_t> ids, tokenizer.encode(text));
  py::Value::Array out;
  out.reserve(ids.size());
  for (const int32_t id : ids) out.emplace_back(id);
  return py::Value::object({{"ids", py::Value(std::move(out))}});
}

Result<py::Value> decode_line(const Tokenizer& tokenizer, const py::Value& request) {
  const py::Value* list = request.find("ids");
  if (!list || !list->if_array()) {
    return Status(Code::kInvalidArgument, cat("\"ids\": expected an array of token ids, found ",
                                              list ? list->type_name() : "nothing"));
  }
  std::vector<int32_t> ids;
  for (const py::Value& item : *list->if_array()) {
    int32_t id = -1;
    const py::Int* number = item.if_int();
    if (number) {
      const std::string& digits = number->digits;
      if (std::from_chars(digits.data(), digits.data() + digits.size(), id).ec != std::errc{}) {
        number = nullptr;
      }
    }
    if (!number) {
      return Status(Code::kInvalidArgument,
                    cat("\"ids\"[", ids.size(), "]: expected a token id, found ", py::dumps(item)));
    }
    ids.push_back(id);
  }
  DSV4_ASSIGN(std::string text, tokenizer.decode(ids));
  return py::Value::object({{"text", py::Value(std::move(text))}});
}

int run(const Options& options) {
  auto tokenizer = Tokenizer::load(options.tokenizer.empty() ? options.model + "/tokenizer.json"
                                                             : options.tokenizer);
  if (!tokenizer.ok()) return fail(tokenizer.status());
  return run_json_lines([&](const py::Value& request) {
    return options.decode ? decode_line(*tokenizer, request) : encode_line(*tokenizer, request);
  });
}

}  // namespace

void add_tokenize(Command app, int& exit_code) {
  auto options = std::make_shared<Options>();
  Command command = app.subcommand("tokenize", "Text to token ids and back, JSON lines");
  command.footer(
      "Reads one JSON object per line of standard input, {\"text\": ...}, and writes {\"ids\": "
      "[...]}\n"
      "for each; with --decode the other way round. Special tokens in the text become their ids,\n"
      "nothing is added. A line that fails gives {\"error\": ...}, and the exit code is 1.\n\n"
      "  echo '{\"text\": \"Hello, world\"}' | dsv4 tokenize -m models/demo\n"
      "  echo '{\"ids\": [0, 1]}' | dsv4 tokenize --tokenizer tokenizer.json --decode");
  Command source = command.one_of_options("source");
  source.option("--tokenizer", options->tokenizer, "a tokenizer.json");
  source.option("-m,--model", options->model, "a checkpoint folder with a tokenizer.json");
  command.flag("--decode", options->decode, "ids to text");
  command.run([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace dsv4::apps
