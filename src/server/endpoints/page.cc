// GET /: a page to talk with the model.
#include "server/endpoints/page.h"

#include "server/endpoints/endpoints.h"

namespace dsv4::server {

void page(App&, const std::shared_ptr<Exchange>& exchange) {
  HttpResponse response;
  response.body = kPage;
  response.content_type = "text/html; charset=utf-8";
  // Everything the page needs is in it; it talks with this server only.
  response.headers = {{"Content-Security-Policy",
                       "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
                       "img-src data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
                       "form-action 'none'"},
                      {"X-Content-Type-Options", "nosniff"},
                      {"Cache-Control", "no-cache"}};
  exchange->respond(std::move(response));
}

}  // namespace dsv4::server
