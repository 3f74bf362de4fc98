// The request of /v1/responses in the encoder's terms.
#pragma once

#include "server/conversation.h"
#include "server/fields.h"

namespace dsv4::server {

struct ResponsesRequest {
  Conversation conversation;
  bool stream = false;
  py::Value echoed;  // an object: what the answer repeats of the request
};

ResponsesRequest read_responses_request(const App& app, const Fields& body);

}  // namespace dsv4::server
