// How far errors of a link's inputs can reach into its output: what widens a bound where something
// in between was not recorded. Rigorous upper bounds, Lipschitz constants rather than derivatives.
#pragma once

#include <vector>

#include "hooks/array.h"
#include "verify/reference/link.h"

namespace lenscpp {

/// Elementwise bound on |link(inputs + e) - link(inputs)| over all |e| <= errors (float64, shaped
/// `output`); an empty error means none, and an empty result that no input has one.
/// Throws std::invalid_argument for edits, which cannot stand in a recorded run.
Array propagate(const Link& link, const std::vector<Array>& inputs,
                const std::vector<Array>& errors, const Shape& output);

}  // namespace lenscpp
