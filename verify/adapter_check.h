// Is a merged weight the checkpoint's and the adapter's? Made again in float64, by other code.
#pragma once

#include "hooks/checkpoint/adapters.h"
#include "hooks/parallel.h"

namespace lenscpp {

/// Recomputes W + alpha / rank B A (with sqrt(rank) when rank_stabilized, scaled by DoRA's
/// magnitudes, or what replaces W) in float64 and compares every element of merged.result within
/// one rounding to its dtype and those of the float64 sums. Throws std::runtime_error naming tensor
/// and element when one is elsewhere or not finite.
void check_merged(const MergedTensor& merged, const ParallelFor& parallel);

}  // namespace lenscpp
