// What the computation should be, from weights and request alone: the reference's own wiring. It
// shares no code with the device pass on purpose: one wiring would share every mistake.
#pragma once

#include <vector>

#include "hooks/rows.h"
#include "verify/reference/link.h"

namespace lenscpp {

/// The links of a run in execution order. `request` must be valid for weights.config
/// (Request::validate). Links refer to the weights' buffers, which they keep alive.
std::vector<Link> wire(const Weights& weights, const Request& request);

}  // namespace lenscpp
