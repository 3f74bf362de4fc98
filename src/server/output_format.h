// The ways in which requests ask for a format of the answer.
#pragma once

#include "server/constraint.h"
#include "server/fields.h"

namespace dsv4::server {

// {"type": "text" | "json_object" | "json_schema", ...}; the schema stands in `json_schema.schema`
// (OpenAI's chat) or in `schema` (responses, Anthropic).
OutputFormat read_format(const Fields& format);

// `response_format` of OpenAI's chat, and `structured_outputs` / `guided_*` as vLLM has them.
OutputFormat read_output_format(const Fields& body);

}  // namespace dsv4::server
