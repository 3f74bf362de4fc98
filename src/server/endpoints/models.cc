// GET /v1/models and /v1/models/NAME: the one model that this server has.
#include "base/str.h"
#include "server/api_error.h"
#include "server/endpoints/endpoints.h"
#include "server/fields.h"

namespace dsv4::server {

void models(App& app, const std::shared_ptr<Exchange>& exchange) {
  const ModelInfo& info = app.engine.info();
  const std::string& name = app.options.model_name;
  py::Value model = py::Value::object({{"id", py::Value(name)},
                                       {"object", "model"},
                                       {"created", json_int(app.started)},
                                       {"owned_by", "dsv4"},
                                       {"max_model_len", json_int(info.context)}});
  const std::string& path = exchange->request().path;
  constexpr std::string_view kAll = "/v1/models";
  if (path == kAll) {
    return exchange->respond({.body = py::dumps(py::Value::object(
                                  {{"object", "list"}, {"data", py::Value::array({model})}}))});
  }
  const std::string_view asked = std::string_view(path).substr(kAll.size() + 1);
  if (asked == name) return exchange->respond({.body = py::dumps(model)});
  exchange->respond(error_response(
      Dialect::kOpenAi, {.status = 404,
                         .message = cat("the model \"", asked, "\" does not exist; this server has \"",
                                        name, "\""),
                         .param = "model",
                         .code = "model_not_found"}));
}

}  // namespace dsv4::server
