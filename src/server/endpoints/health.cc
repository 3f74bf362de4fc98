// GET /health: 200 while the server answers requests.
#include "server/endpoints/endpoints.h"

namespace dsv4::server {

void health(App& app, const std::shared_ptr<Exchange>& exchange) {
  if (app.engine.healthy()) return exchange->respond({.body = "{\"status\": \"ok\"}"});
  exchange->respond({.status = 503, .body = "{\"status\": \"failed\"}"});
}

}  // namespace dsv4::server
