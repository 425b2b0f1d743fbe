// A whole run in float64, from the tokens: what the model computes when nothing rounds.
#pragma once

#include "hooks/checkpoint/weights.h"
#include "hooks/parallel.h"
#include "hooks/rows.h"

namespace lenscpp {

/// The last link's output (logits, or a residual) in float64. Only tensors still to be read are
/// held.
Array run_in_float64(const Weights& weights, const Request& request, const ParallelFor& parallel);

}  // namespace lenscpp
