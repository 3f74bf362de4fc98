#include "api/loaded_model.h"

#include <utility>

#include "api/backends.h"

namespace dsv4 {

Result<OpenedModel> open_model(const std::string& dir, SafetensorsOptions options) {
  OpenedModel opened;
  DSV4_ASSIGN(opened.config, load_config(dir));
  opened.plan = make_plan(opened.config);
  DSV4_ASSIGN(Checkpoint checkpoint, Checkpoint::open(dir, options));
  opened.checkpoint = std::make_unique<Checkpoint>(std::move(checkpoint));
  return opened;
}

Result<LoadedModel> load_model(OpenedModel opened, std::unique_ptr<Backend> backend,
                               const ProgressSink& progress) {
  LoadedModel loaded;
  loaded.backend = std::move(backend);
  loaded.checkpoint = std::move(opened.checkpoint);
  loaded.model = std::make_unique<Model>();
  loaded.model->config = std::move(opened.config);
  loaded.model->plan = std::move(opened.plan);
  DSV4_ASSIGN(loaded.model->weights, bind_weights(*loaded.checkpoint, loaded.model->config,
                                                  loaded.model->plan, *loaded.backend, progress));
  return loaded;
}

Result<LoadedModel> load_model(const std::string& dir, std::string_view device,
                               const ProgressSink& progress, std::string_view cache_rows) {
  DSV4_ASSIGN(auto backend, make_backend(device, cache_rows));
  DSV4_ASSIGN(OpenedModel opened, open_model(dir));
  return load_model(std::move(opened), std::move(backend), progress);
}

}  // namespace dsv4
