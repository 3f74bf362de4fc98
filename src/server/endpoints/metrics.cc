// GET /metrics: for Prometheus.
#include "server/endpoints/endpoints.h"

namespace dsv4::server {

void metrics(App& app, const std::shared_ptr<Exchange>& exchange) {
  const int64_t connections = app.connections ? app.connections() : 0;
  exchange->respond({.body = app.metrics.text(app.engine.stats(), connections),
                     .content_type = "text/plain; version=0.0.4; charset=utf-8"});
}

}  // namespace dsv4::server
