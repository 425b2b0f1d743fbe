// A run in parts: where a device cannot take all prompts at once, it is given as many as it can
// take at a time, and the recorded tensors are put together on the host. Prompts do not see each
// other, so that this is the same run, and it is verified as one.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "hooks/transformer/transformer.h"
#include "verify/device/limits.h"

namespace lenscpp {

/// How many prompts each part takes: the largest that stay within the limits. Empty: the run fits
/// as it is. Throws DeviceError where not even one prompt fits, and where splitting would change
/// what is computed: callbacks see the whole batch, and a mean edit without a source averages it.
std::vector<std::int64_t> parts_of(const Weights& weights, const Request& request,
                                   const DeviceLimits& limits);

/// Prompts [first, first + count) of a request as a request of their own, with the same tensors and
/// stages: an edit of another prompt alone becomes one that changes nothing.
Request part_of(const Request& request, std::int64_t first, std::int64_t count);

/// Runs a request, every tensor to a sink that may be null.
using RunPart = std::function<PassResult(const Request&, Sink*)>;
/// Runs the parts one after another; `sink` (unless null) is then handed every tensor of the whole
/// run in execution order. The result lists what fell back in any part; throws std::runtime_error
/// where torch's ambient state was another one in a later part.
PassResult run_in_parts(const Request& request, const std::vector<std::int64_t>& parts, Sink* sink,
                        const RunPart& run);

}  // namespace lenscpp
