#include "server/output_format.h"

namespace dsv4::server {
namespace {

using py::Value;

// {"json": SCHEMA} or {"regex": ...} or {"choice": [...]}, with `prefix` before each name.
void read_structured(const Fields& fields, const std::string& prefix, OutputFormat& out) {
  if (const Value* schema = fields.get(prefix + "json")) {
    out.kind = OutputFormat::Kind::kJsonSchema;
    out.schema = *schema;
    if (const std::string* text = schema->if_string()) {
      auto read = py::loads(*text);
      if (!read.ok()) return fields.report(prefix + "json", read.status().message());
      out.schema = std::move(read).value();
    }
  }
  if (const auto regex = fields.string(prefix + "regex")) {
    out.kind = OutputFormat::Kind::kRegex;
    out.regex = *regex;
  }
  if (const Value::Array* choices = fields.array(prefix + "choice")) {
    out.kind = OutputFormat::Kind::kChoice;
    out.choices = fields.strings(prefix + "choice", 1000);
    if (choices->empty()) fields.report(prefix + "choice", "expected at least one text");
  }
}

}  // namespace

OutputFormat read_format(const Fields& format) {
  OutputFormat out;
  const auto type = format.one_of("type", {"text", "json_object", "json_schema"});
  if (!type) format.report("type", "expected text, json_object or json_schema");
  if (type == "json_object") out.kind = OutputFormat::Kind::kJsonObject;
  if (type != "json_schema") return out;
  out.kind = OutputFormat::Kind::kJsonSchema;
  const Value* schema = format.object("schema");
  if (const Value* outer = format.object("json_schema")) {
    schema = Fields(*outer, format.path("json_schema"), format.problem()).object("schema");
  }
  if (!schema) {
    format.report("schema", "expected a JSON schema");
  } else {
    out.schema = *schema;
  }
  return out;
}

OutputFormat read_output_format(const Fields& body) {
  OutputFormat out;
  if (const Value* format = body.object("response_format")) {
    out = read_format(Fields(*format, body.path("response_format"), body.problem()));
  }
  read_structured(body, "guided_", out);
  if (const Value* structured = body.object("structured_outputs")) {
    read_structured(Fields(*structured, body.path("structured_outputs"), body.problem()), "", out);
  }
  return out;
}

}  // namespace dsv4::server
