// OpContext: what an op may use besides its arguments.
#pragma once

#include "ops/backend.h"
#include "ops/op_table.h"
#include "ops/workspace.h"

namespace dsv4 {

struct OpContext {
  Backend& backend;
  const OpTable& ops;  // the table in force, wrappers included: fused defaults call through it
  Stream& stream;
  Workspace& workspace;
};

}  // namespace dsv4
