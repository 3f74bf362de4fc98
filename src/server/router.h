// Which endpoint answers which path.
#pragma once

#include <memory>
#include <string>

#include "server/app.h"
#include "server/http.h"

namespace dsv4::server {

// Finds the endpoint, checks the key, answers what no endpoint does (404, 405, OPTIONS).
void dispatch(App& app, const std::shared_ptr<Exchange>& exchange);

}  // namespace dsv4::server
