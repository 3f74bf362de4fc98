// The reference backend: scalar, complete, the truth that other backends are held to. It follows
// every rounding point of the model and accumulates in FP64, so each rounded result is the correctly
// rounded one; each row's arithmetic is independent of the batch around it.
#pragma once

#include <memory>

#include "ops/backend.h"

namespace dsv4 {

std::unique_ptr<Backend> make_reference_backend();

}  // namespace dsv4
