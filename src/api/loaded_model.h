// From a folder to a model on a backend: the steps that every command which computes begins with.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/log.h"
#include "checkpoint/checkpoint.h"
#include "dsv4/status.h"
#include "model/forward.h"
#include "ops/backend.h"

namespace dsv4 {

// Headers and config only.
struct OpenedModel {
  ModelConfig config;
  ModelPlan plan;
  std::unique_ptr<Checkpoint> checkpoint;
};
Result<OpenedModel> open_model(const std::string& dir, SafetensorsOptions options = {});

// In the order of dependence: weights view the checkpoint's mapping and live in the backend's
// memory.
struct LoadedModel {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<Model> model;
};
Result<LoadedModel> load_model(const std::string& dir, std::string_view device,
                               const ProgressSink& progress, std::string_view cache_rows = "auto");
Result<LoadedModel> load_model(OpenedModel opened, std::unique_ptr<Backend> backend,
                               const ProgressSink& progress);

}  // namespace dsv4
