// Anthropic's messages in the encoder's terms.
#pragma once

#include "server/conversation.h"
#include "server/fields.h"

namespace dsv4::server {

// Everything of a request of /v1/messages that concerns the prompt and the sampling. Problems are
// reported to the fields' Problem.
Conversation read_anthropic_request(const App& app, const Fields& body);

}  // namespace dsv4::server
