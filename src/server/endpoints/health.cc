// GET /health: 200 while the server answers requests.
#include "server/endpoints/endpoints.h"

namespace dsv4::server {

void health(App&, const std::shared_ptr<Exchange>& exchange) {
  exchange->respond({.body = "{\"status\": \"ok\"}"});
}

}  // namespace dsv4::server
