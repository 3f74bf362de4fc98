// Fingerprint: what cached state depends on besides tokens. State of one fingerprint is exact for
// an engine of the same and means nothing to any other.
#pragma once

#include <string>

#include "api/loaded_model.h"
#include "base/hash.h"

namespace dsv4 {

// Of the model's files (config and headers by content, weights by size and date), of the backend
// (its sums may differ in the last bit), of how its cache rows lie in memory and of this program.
Hash128 fingerprint(const std::string& model_dir, const Checkpoint& checkpoint,
                    const Backend& backend);

}  // namespace dsv4
