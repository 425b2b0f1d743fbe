// Is a processed model still the same model? Both are run end to end in float64 by the reference.
#pragma once

#include "hooks/checkpoint/weights.h"
#include "hooks/parallel.h"

namespace lenscpp {

/// Compares the log-probabilities of `processed` with those of `raw` on a few fixed tokens, in
/// float64. Throws std::runtime_error saying by how much they differ when that is more than
/// rounding the processed weights can make. Both must hold the same dtype.
void check_processing(const Weights& raw, const Weights& processed, const ParallelFor& parallel);

}  // namespace lenscpp
