// Server-sent events: what a streamed answer is made of.
#pragma once

#include <string>
#include <string_view>

#include "base/str.h"
#include "server/http.h"

namespace dsv4::server {

inline HttpResponse sse_head() {
  HttpResponse head;
  head.content_type = "text/event-stream; charset=utf-8";
  // The second one asks nginx not to collect the events.
  head.headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
  return head;
}

inline std::string sse_data(std::string_view json) {
  return cat("data: ", json, "\n\n");
}

inline std::string sse_event(std::string_view name, std::string_view json) {
  return cat("event: ", name, "\ndata: ", json, "\n\n");
}

}  // namespace dsv4::server
